"""Sentences that ask for captions, points, counts and tracks of videos; one is drawn per annotation.

The lists are as long as those of allenai/molmo2 (f3cb108, olmo/preprocessing/data_formatter.py), so that the same
random numbers draw the same places; the words are our own.
"""

import re

from molmo_ds.data.wording.actions import ACTION_TEMPLATES
from molmo_ds.data.wording.pictures import LONG_CAPTION, POINT_COUNT, POINTING


def of_video(sentence: str) -> str:
    """A sentence about a picture as one about a video."""
    moved = re.sub(r"\b(picture|image|photo|photograph)\b", "video", sentence)
    return moved.replace("in front of the camera", "filmed").replace("is visible", "can be seen")


SHORT_CAPTION = (
    "Say in a sentence what happens in this video.",
    "Sum up the video in one or two sentences.",
    "What is the video about? Be brief.",
    "Give the video a short caption.",
    "short caption of the video",
    "In a few words: what is shown?",
    "Tell me shortly what can be seen in this clip.",
    "Describe the clip in one line.",
    "A brief description of the video, please.",
    "What happens here, in short?",
    "Short video caption:",
)
TRANSCRIPT = (
    "Talk me through this video as you would aloud.",
    "Speak about the video like someone who watches it.",
    "Say what a person would say while describing this clip.",
    "Give the words of someone who tells another what the video shows.",
    "Describe the video in spoken language.",
)
MOTION_CAPTION = (
    "How do things move in this video?",
    "Describe all movement in the clip.",
    "Write down who and what moves, and how.",
    "Give a caption of the motion.",
    "motion in this video",
    "Which movements can be seen, and in which order?",
    "Tell me about the motion, not about the looks.",
    "Follow the movement in the video and describe it.",
    "Explain how the camera and the objects move.",
    "Write a detailed caption about motion.",
)
COUNT = (
    "How many {label} does the video show?",
    "Count {label} in the video.",
    "What is the number of {label} in this clip?",
    "Tell me how many {label} appear.",
    "Number of {label}, please.",
    "How often can {label} be counted? Answer with a number.",
)
COUNT_POINT = (
    "Say how many {label} there are, then point to them.",
    "Count {label}, and show each of them.",
    "First the number of {label}, then their places.",
    "Give the count of {label} and point to every one.",
    "How many {label} are there, and where?",
    "Tell the number of {label} in the video, with points behind it.",
)
TRACK = (
    "Track {label} in {fps} FPS.",
    "Track {label} at {fps} FPS",
    "Follow {label}, {fps} points a second.",
    "Where is {label} over time? Take {fps} frames per second and give the coordinates at each.",
    "Point to {label} through the whole video. Sample at {fps} FPS.",
    "Give the track of {label}: coordinates at {fps} FPS.",
    "Keep track of each {label}, at {fps} frames per second, by coordinates.",
    "Show how {label} moves, with a point at each frame of {fps} FPS.",
    'Keep track of each {label} at {fps} FPS. Answer as <track coords="t id x y">label</tracks>.',
    'Follow {label} at {fps} FPS; write the track as <track coords="t id x y">label</tracks>.',
)
TRACK_AT_TWO = (  # points a second, which need not be said
    "Track {label}.",
    "track {label}.",
    "follow every {label}.",
    "follow each {label}",
    'please follow "{label}".',
    "Track: {label}",
    "track: {label}",
    "all {label}, tracked",
)
TRACK_POINT = (
    "Track {start} in {fps} FPS.",
    "{start} follow at {fps} FPS.",
    "{start} Where does it go? Sample at {fps} FPS.",
    'From here on, track {start}, written as <points coords="t id x y">label</points>, at {fps} FPS',
    'Keep to this point {start}, written as <points coords="t id x y">label</points>. Sample at {fps} FPS.',
    'The point {start} is written as <points coords="t id x y">label</points>; follow it at {fps} FPS.',
    "Follow the point {start} from frame to frame, {fps} frames a second, by coordinates.",
    "Would you follow the point {start} to the end at {fps} FPS?",
    "Begin at the point {start} and give its place at {fps} FPS.",
    "At {fps} FPS, where is the point {start}?",
    "Tracking: begin at {start}, rate {fps} FPS.",
    'Tracking: {start} as <points coords="t id x y">label</points>, rate {fps} FPS.',
)
SHORT_ANSWER = (
    "Keep the answer to this short\n{question}",
    "{question} A few words will do",
    "{question} Be very brief",
    "{question} Just the answer, no details and no explanation",
    "Here is a question about the video, to be answered in few words: {question}",
    "Question: {question} Brief Answer:",
    "Question: {question}\nBrief Answer:",
    "{question}\nMake the answer as short as you can.",
    "Very short answer, please:\n{question}",
    'Asked about the video: "{question}". In short, the answer is',
    "{question} Look at the video and give a short reply:",
    "{question} Brief answer:",
    "{question} In short, it is",
    "A short and plain answer to this question, please: {question}",
    "Answer simply and directly, without explaining anything:\n{question}",
)
START_END = (
    "Where does {label} come in, and where does it go?",
    "Point to {label} where it is first and last seen.",
    "First and last place of {label}?",
    "When and where does {label} appear and disappear?",
    "Mark the beginning and the end of {label}.",
    "Show the first and the last sight of {label}.",
    "Give the points at which {label} starts and ends.",
)
VIDEO_TEMPLATES = {
    "video_short_caption": SHORT_CAPTION,
    "video_long_caption": tuple(map(of_video, LONG_CAPTION)),
    "video_transcript": TRANSCRIPT,
    "video_motion_caption": MOTION_CAPTION,
    "video_point": tuple(map(of_video, POINTING)),
    "video_point_count": (
        *map(of_video, POINT_COUNT),
        "Watch the video and count {label}, point by point.",
        "Point to {label} as they appear, and give the sum.",
        "Over the whole video, how many {label} are there?",
    ),
    "video_count": COUNT,
    "video_count_point": COUNT_POINT,
    "video_point_track_per_frame": TRACK,
    "video_point_track_per_frame_default_fps": TRACK_AT_TWO,
    "video_single_point_track_per_frame": TRACK_POINT,
    "video_short_answer": SHORT_ANSWER,
    "video_point_ground_start_end": START_END,
    **ACTION_TEMPLATES,
}
