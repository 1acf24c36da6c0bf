"""A question with options as Molmo2 is asked it: one form in evaluation, many in training.

An evaluation, and one training question in ten, has the released form: the question, a fixed request, and a line
`A. option` each; the answer is the whole line. Every other question draws its markers, names, separators and words.
Draws, chances and numbers of sentences are those of allenai/molmo2 (f3cb108, olmo/preprocessing/data_formatter.py and
multiple_choice_templates.py); the drawn sentences are our own.
"""

from collections.abc import Sequence
from string import ascii_lowercase, ascii_uppercase

from numpy.random import RandomState

REQUEST = "Only return the correct answer option."  # of the released form
P_RELEASED = 0.1  # of training questions
P_NAME_ONLY = 0.25  # the answer is the option's name, without its text
P_NAMED = 0.8  # of the others, options have names
P_INLINE = 0.1  # options follow each other in one line
P_INSTRUCTED = 0.5  # a sentence of its own says how to answer
P_COMMON = 0.8  # the marker is a common one

MARKERS = ("{}. ", "{}) ", "{}: ", "({}) ")
RARE_MARKERS = (
    *("{}\t", "{} ", "{}    ", "{} =>", "{} => ", "{})", "{}.", "{}.  ", "{}:", "{};"),
    *("{}; ", "{}=", "({})", "<{}>", "<{}> ", "[{}]", "[{}] ", "{{{}}}", "{{{}}} "),
)
NAMES = (
    (tuple(ascii_uppercase), "letter"),
    (tuple(ascii_lowercase), "letter"),
    (tuple(str(number) for number in range(1, 21)), "number"),
    (("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x"), "numeral"),
)
BULLETS = "•◦▪▫‣⁃∙○●□"

NAME_INSTRUCTIONS = (
    "Give the {name} of the right option, nothing more.",
    "Only the {name} is wanted.",
    "Which {name} is right? Write just that.",
    "Write the {name} alone.",
    "The {name} of the option is enough.",
    "Your reply (one {name}):",
    "Pick an option and write down its {name}.",
    "Decide on an answer and reply with its {name}.",
    "Say the {name} of your choice and stop there.",
    "the {name} of the option you choose, no text",
    "reply: the {name} only",
    "One {name} as the answer, please.",
    "Nothing but the {name} of the option.",
    "Name the {name}, leave the text out.",
    "please give the {name} of the right answer.",
    "Your whole answer should be a {name}.",
)
INSTRUCTIONS = (
    "Which of these answers the question?",
    "Give one of the options.",
    "Give the option that fits best.",
    "The answer is one of the options: which?",
    "Use one of the options as your answer.",
    "Reply with the right option only.",
    "Write the right option and nothing else",
    "Answer by one of the options.",
    "Answer by one of the options",
    "the right option, please.",
    "Take one of the options.",
    "Reply with an option from the list.",
    "Give the best option at once.",
    "State the best option, without more words.",
)
NAMED_INSTRUCTIONS = (
    "Reply with the option's {name} and all of its text.",
    "Give both the {name} and the text of the option.",
)
INSTRUCTED = (
    "Question: {question}\n\nOptions:\n{options}\n\n{instruction}",
    "# Question\n{question}\n\n# Options\n{options}\n\n# How to answer\n{instruction}",
    "{question}\n\n{options}\n\n{instruction}",
    "{instruction}\n\n{question}\n\n{options}",
    "{instruction}\n{question}\n{options}",
    "Q: {question}\n\n{options}\n\n{instruction}",
    "{question}\n\n***\n{options}\n***\n\n{instruction}",
    "{question}\n\nOptions\n{options}\n\n{instruction}",
    "{question}\n{options}\n{instruction}",
    "Question (1):\n{question}\n\nOptions (2):\n{options}\n\nAnswer (3):\n{instruction}",
    "{question} {options}. {instruction}",
    "One of these is right:\n\n{question}\n\n{options}\n\n{instruction}",
    "{question}\n\n\n{options}\n\n\n{instruction}",
    "Question: {question}\n\n{options}\n\nReply: {instruction}",
    "== Question ==\n{question}\n\n== Options ==\n{options}\n\n== Notes ==\n{instruction}",
)
NAME_SENTENCES = (
    "{question}\n{options}\nGive the {name} of the best option and no more",
    "Here is a question with options; answer by the {name}:\n{question}\n{options}",
    "Read the options and reply with the {name} of the best one.\nQuestion: {question}\nOptions: {options}",
    "Question: {question} Options: {options} The {name} is:",
    "Choose a {name} that answers the question\nQuestion: {question}\nOptions: {options}",
    "{question}\n{options}\nOnly the {name} of the right answer",
    'The question is "{question}": which {name} is right?\n{options}',
    "Question: {question}\n\nTake one {name}:\n{options}",
    "{question}\n{options}\nReply by the right {name} alone.",
)
SENTENCES = (
    "{question}\n{options}\nWhich option is the best answer?",
    "{question}\n{options}\nGive the option that answers best",
    "{question}\n{options}\nTake the best answer.",
    "{question}\n{options}\nPlease reply with the best option.",
    "{question} Choose an answer among:\n{options}",
    "{question}\nThe best answer is one of:\n{options}\n\n",
    "{question}\nName the right answer, do not explain it:\n{options}\n",
    "{question}\nFind the right answer and write it down:\n{options}\n",
    "Question: {question} Options: {options}. The right option:",
    "Question: {question}\nOptions: {options}\nThe right option:",
    "Reply to the question by an answer option\nQuestion: {question}\nOptions: {options}",
    "Reply to the question by an option\nQuestion: {question}\nOptions:\n{options}",
    "{question}\n{options}\nThe right answer alone",
    'I wonder about "{question}"; which of these is the answer?\n{options}.',
    'To the question "{question}", give the best of these options:\n{options}.',
    "Question: {question}\n\nTake one:\n{options}",
    "Question: {question}\nTake one of:\n{options}",
    'Question: "{question}"\nTake one of:\n{options}',
    "Question: {question}. Options: {options}. The best of them:\n",
)


def released(question: str, options: Sequence[str], named: bool = True) -> tuple[str, list[str]]:
    """(text, answer for each option) in the form of every evaluation; without names the answers are the options."""
    lines = [f"{name}. {one}" for name, one in zip(ascii_uppercase, options)]
    lines = lines if named else list(options)
    return "\n".join([question, REQUEST, *lines]), lines


def drawn(
    question: str, options: Sequence[str], rng: RandomState, p_named: float = P_NAMED
) -> tuple[str, list[str]]:
    """(text, answer for each option) of a training question; `options` are at most 26."""
    name_only = rng.random_sample() < P_NAME_ONLY
    named = name_only or rng.random_sample() < p_named
    inline = rng.random_sample() < P_INLINE
    instructed = rng.random_sample() < P_INSTRUCTED
    marker = ""
    names: Sequence[str] = options
    lines = list(options)
    kind = "letter"
    if named:
        markers = MARKERS if rng.random_sample() > 1 - P_COMMON else RARE_MARKERS
        marker = markers[rng.randint(len(markers))]
        names, kind = NAMES[rng.randint(len(NAMES))]
        if len(names) < len(options):  # the reference drops the options that have no numeral
            names, kind = NAMES[0]
        lines = [marker.format(name) + one for name, one in zip(names, options)]
    listed = _listed(lines, marker, named, inline, rng)
    if named:
        kind = _called(kind, rng.random_sample())
    parts = {"question": question, "options": listed, "name": kind}
    sentences = NAME_SENTENCES if name_only else SENTENCES
    if instructed:
        instructions = NAME_INSTRUCTIONS if name_only else INSTRUCTIONS
        if named and not name_only:
            instructions += NAMED_INSTRUCTIONS
        instruction = instructions[rng.randint(len(instructions))]
        parts["instruction"] = instruction.format(name=kind)
        sentences = INSTRUCTED
    text = sentences[rng.randint(len(sentences))].format(**parts)
    return text, list(names[: len(options)]) if name_only else lines


def _listed(lines: Sequence[str], marker: str, named: bool, inline: bool, rng: RandomState) -> str:
    """The options as one text: in a line, or below each other."""
    separators = [
        one
        for one in (";", " ||| ")
        if one not in marker.strip() and not any(line.endswith(one) for line in lines)
    ]
    separators += [""] if named else []
    if inline and separators:
        separator = separators[rng.randint(len(separators))]
        *before, last = lines
        return " ".join([*(line + separator for line in before), last])
    if not named and rng.random_sample() < 0.5:
        bullet = BULLETS[rng.randint(len(BULLETS))]
        return "\n".join(f"{bullet} {line}" for line in lines)
    return "\n".join(lines)


def _called(kind: str, chance: float) -> str:
    """What a question calls the names of its options: mostly by their kind."""
    if chance < 0.6:
        return kind
    return "identifier" if chance < 0.8 else "label"
