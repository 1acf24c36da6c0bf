"""Sentences that ask what is done in a video, and for captions of one thing in it; one is drawn per annotation.

The lists are as long as those of allenai/molmo2 (f3cb108): of actions those of olmo/data/academic_video_datasets.py, of
things olmo/preprocessing/data_formatter.py; the words are our own.
"""

ACTION = (
    "Which action is shown?",
    "What is being done here?",
    "Name the activity in this video.",
)
PERSON_ACTION = (
    "Which action is shown?",
    "What does the person do?",
    "Which action does the person carry out?",
    "Name the activity in this video.",
)
OBJECT_CAPTION = (
    "Describe the {label} in this video in a sentence or two.",
    "What about the {label}? Be brief.",
    "Say shortly what the {label} does in the clip.",
    "Give the {label} in the video a short caption.",
    "Short caption of the {label}:",
    "A brief description of the {label} in this video, please.",
    "Watch the {label} and tell in one or two sentences what happens to it.",
    "In a few words: how does the {label} look, and what does it do?",
    "Sum up the video as far as the {label} is concerned, in a sentence.",
    "Only the {label}, in short:",
)
ACTION_TEMPLATES = {
    "activitynet_label": ACTION,
    "charades_sta": PERSON_ACTION,
    "coin_label": ACTION,
    "epic_kitchens_label": ACTION,
    "kinetics_label": PERSON_ACTION,
    "moments_in_time_label": ACTION,
    "youcook2_label": ACTION,
    "video_object_caption": OBJECT_CAPTION,
}
