"""What the processes of a server are told when they are started, as JSON."""

import base64
import json
from dataclasses import asdict, dataclass

SECRET = "MOLMO_DS_LINK_SECRET"  # variable of the ranks that holds the secret of the link


@dataclass(frozen=True, kw_only=True)
class FrontSettings:
    """What a front needs to know."""

    folder: str
    tokenizer: str | None = None
    model: str = "molmo"  # its name in answers
    address: str = "127.0.0.1:8000"
    link: str = "127.0.0.1:8001"  # where the engine dials in
    secret: str = ""  # that the engine must know
    api_key: str | None = None
    queue: int = 64  # requests that are read or answered at a time; one more gets 429
    seconds: float = 600.0  # in which a request must be answered
    stall: float = 30.0  # seconds of silence after which the engine counts as lost
    max_bytes: int = 32 << 20  # of a request
    max_pixels: int = 64_000_000  # of all pictures of a request, or of all frames of its video
    max_pictures: int = 8
    max_frames: int = 384  # of a video
    hosts: tuple[str, ...] = ()  # from which pictures and videos may be fetched


@dataclass(frozen=True, kw_only=True)
class RankSettings:
    """What a rank needs to know."""

    folder: str
    link: str  # the front's HOST:PORT
    tokenizer: str | None = None
    strategy: str | None = None  # None: one process
    device: str | None = None  # of one process
    slots: int = 64  # of one process: answers at a time
    patience: float = 60.0  # seconds without a front before the engine ends


def as_word(settings: RankSettings) -> str:
    """Settings as one word that every shell on the way to another host leaves as it is."""
    return base64.urlsafe_b64encode(json.dumps(asdict(settings)).encode()).decode()


def from_word(word: str) -> RankSettings:
    """What `as_word` was given."""
    return RankSettings(**json.loads(base64.urlsafe_b64decode(word)))
