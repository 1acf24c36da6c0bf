"""What the front counts, as Prometheus reads it."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

PREFIX = "molmo_ds_"
FIRST = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)  # seconds
NEXT = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """Counters, gauges and histograms of one front."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.registry = registry
        self.requests = Counter(
            PREFIX + "requests", "answered requests", ["path", "code"], registry=registry
        )
        self.admitted = Gauge(
            PREFIX + "requests_admitted", "requests that are read or answered", registry=registry
        )
        self.waiting = Gauge(
            PREFIX + "answers_waiting", "answers without a first token", registry=registry
        )
        self.running = Gauge(
            PREFIX + "answers_running", "answers with a first token", registry=registry
        )
        self.connected = Gauge(
            PREFIX + "engines_connected", "engines that are there", registry=registry
        )
        self.losses = Counter(PREFIX + "engine_losses", "engines that were lost", registry=registry)
        self.resent = Counter(
            PREFIX + "answers_resent", "answers sent to another engine", registry=registry
        )
        self.prompt_tokens = Counter(
            PREFIX + "prompt_tokens", "tokens of prompts", registry=registry
        )
        self.new_tokens = Counter(
            PREFIX + "generated_tokens", "tokens of answers", registry=registry
        )
        self.first = Histogram(
            PREFIX + "first_token_seconds",
            "from the question to the first token",
            buckets=FIRST,
            registry=registry,
        )
        self.next = Histogram(
            PREFIX + "token_seconds",
            "from one token of an answer to the next",
            buckets=NEXT,
            registry=registry,
        )

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
