"""Styles of annotations by how they are asked: with the style before the question, rarely or never.

Sources: allenai/molmo at 793fa38, olmo/data/data_formatter.py; allenai/molmo2 at f3cb108,
olmo/preprocessing/data_formatter.py.
"""

# styles that only evaluation uses, and those that Molmo2 keeps apart in its data only
SAME_AS = {
    "eval_short_answer": "vqa2",
    "eval_multiple_choice": "a_okvqa_mc",
    "video_eval_short_answer": "video_short_answer",
    "video_eval_multiple_choice": "video_multiple_choice",
    "video_eval_multiple_choice_w_subtitle": "video_multiple_choice_w_subtitle",
    "video_short_answer_count_without_pointing": "video_short_answer",
    "video_multiple_choice_count_without_pointing": "video_multiple_choice",
}
# of Molmo: spoken as a user would, rarely with a style
DEMO_STYLES = ("point_count", "pointing", "user_qa", "long_caption", "cosyn_point", "text_sft")
FREE = "demo"  # of a user's question that names no style
BARE_STYLES = ("android_control", FREE)  # of Molmo: never with a style
# of Molmo2: spoken as a user would, never with a style
SPOKEN_STYLES = (
    *DEMO_STYLES,
    "short_caption",
    "correction_qa",
    "video_long_caption",
    "video_short_caption",
    "video_transcript",
    "video_clip_caption_start_end",
    "video_clip_caption_start_end_in_seconds",
    "video_clip_transcript_start_end",
    "video_clip_transcript_start_end_in_seconds",
    "video_frame_caption_timestamp",
    "video_frame_caption_timestamp_in_seconds",
    "video_point",
    "video_point_count",
    "video_count",
    "video_count_point",
    "video_point_track_per_frame",
    "video_point_track_start_end",
    "video_single_point_track_start_end",
    "multi_image_pointing",
    "multi_image_counting",
    "multi_image_point_then_count",
    "multi_image_count_then_point",
)
# of Molmo2: questions with options, never with a style
CHOICE_STYLES = (
    "a_okvqa_mc",
    "ai2_diagram",
    "ai2_diagram_no_letter",
    "science_qa",
    "multi_image_mc",
    "multi_image_mc_exp",
    "mantis_instruct_mc",
    "video_multiple_choice",
    "video_multiple_choice_multiple_correct",
    "video_multiple_choice_w_subtitle",
)
POINTING_STYLES = ("pointing", "point_count", "cosyn_point")  # of one picture
# style -> kind of an answer by points (`point_text.format_groups`); every other one is the points alone
MODES = {
    "point_count": "point_count",
    "video_point_count": "point_count",
    "video_count": "count",
    "video_count_point": "count_point",
    "multi_image_counting": "count",
    "multi_image_point_then_count": "point_then_count",
    "multi_image_count_then_point": "count_then_point",
}
ENDS_ONLY = ("video_point_ground_start_end", "video_point_track_start_end")  # of tracks
TRACK_STYLE = "video_point_track_per_frame"
TRACK_OF_POINT = "video_single_point_track_per_frame"  # from a point that the question names
# of videos, asked in words that want a short answer; those of evaluation are asked as they are
SHORT_ANSWERS = ("video_short_answer", "video_short_answer_count_without_pointing")
