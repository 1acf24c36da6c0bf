"""The sets of tasks by name, and the names that the references have for the same."""

PAPER = "paper"  # the eleven whose mean allenai/molmo's paper gives
# of allenai/molmo2, which asks more about videos than its predecessor
SINGLE_IMAGE = (
    "coco_2014_vqa",
    "text_vqa",
    "chart_qa",
    "doc_qa",
    "info_qa",
    "ai2_diagram_v2_mix_transparent",
    "mmmu_test",
    "real_world_qa_no_instruction:test",
    "math_vista_v2",
)
SINGLE_IMAGE_TEST = (
    "info_qa:test",
    "doc_qa:test",
    "chart_qa:test",
    "text_vqa",
    "ai2_diagram_v2_mix_transparent:test",
    "math_vista_v2",
    "real_world_qa_no_instruction:test",
    "a_okvqa_mc",
    "a_okvqa_da",
    "mmmu_test",
    "a_okvqa_mc:test",
    "a_okvqa_da:test",
    "countbench_qa:huggingface",
    "pixmo_count_counting:test",
    "vqa_v2_test:test2015",
)
SHORT_VIDEO = (
    "mvbench",
    "tomato:test",
    "motionbench:validation",
    "temp_compass_internal",
    "perception_test",
    "ego_schema",
    "nextqa_mc:test",
)
SUBTITLED = ("video_mme_w_subtitle", "long_video_bench_w_subtitle", "lvbench")
SILENT = (
    "mlvu_mc",
    "video_mme",
    "long_video_bench_no_subtitle",
    "molmo2_cap_eval:test",
    "video_eval_pro_mc:test",
)
LONG_VIDEO = SUBTITLED + SILENT
TESTS = ("mlvu_mc", "perception_test", "ego_schema", "motionbench", "long_video_bench_w_subtitle")
SETS: dict[str, tuple[str, ...]] = {
    "low-res": (
        "android_control_ll",
        "countbench_qa:huggingface",
        "pixmo_count_counting:validation",
        "pointing_eval:test",
    ),
    "high-res": (
        "coco_2014_vqa",
        "text_vqa",
        "okvqa",
        "chart_qa",
        "doc_qa",
        "info_qa",
        "science_qa_img",
        "ai2_diagram_v2_mix_transparent",
        "a_okvqa_mc",
        "a_okvqa_da",
        "mmmu_test",
        "real_world_qa_no_instruction:test",
        "math_vista_v2",
        "pixmo_clocks:validation",
    ),
    "low-res-test": (
        "countbench_qa:huggingface",
        "pixmo_count_counting:test",
        "android_control_hl_ll:test",
        "android_control_hl:test",
        "vqa_v2_test:test2015",
    ),
    "high-res-test": (
        "info_qa:test",
        "doc_qa:test",
        "chart_qa:test",
        "text_vqa",
        "ai2_diagram_v2_mix_transparent:test",
        "math_vista_v2",
        "real_world_qa_no_instruction:test",
        "a_okvqa_mc",
        "a_okvqa_da",
        "mmmu_test",
        "a_okvqa_mc:test",
        "a_okvqa_da:test",
    ),
    PAPER: (
        "ai2_diagram_v2_mix_transparent:test",
        "chart_qa:test",
        "coco_2014_vqa",
        "doc_qa:test",
        "info_qa:test",
        "text_vqa",
        "real_world_qa_no_instruction:test",
        "mmmu_test",
        "math_vista_v2",
        "countbench_qa:huggingface",
        "pixmo_count_counting:test",
    ),
    "captioner": ("dense_caption_eval:test",),
    "pointing": ("pointing_eval:test",),
    "counting": (
        "countbench_qa:huggingface",
        "pixmo_count_counting:validation",
        "pixmo_count_counting:test",
    ),
    "image-pointing": (
        "countbench_qa:huggingface",
        "pixmo_count_counting:validation",
        "pointing_eval:test",
        "point_bench:test",
    ),
    "single-image-test": SINGLE_IMAGE_TEST,
    "multi-image": ("muir_bench:test", "mmiu:test", "blink:validation"),
    "short-video": ("mvbench", "temp_compass", "perception_test", "ego_schema", "nextqa_mc:test"),
    "long-video": ("video_mme", "mlvu_mc", "long_video_bench"),
    "molmo2-short-video": SHORT_VIDEO,
    "molmo2-long-video": LONG_VIDEO,
    "video": SHORT_VIDEO + LONG_VIDEO,
    "video-subtitle": SUBTITLED,
    "video-no-subtitle": SHORT_VIDEO + SILENT,
    "video-pointing": (
        "vixmo_points_count_clip_63s:val",
        "vixmo_points_point_eval:val",
        "mevis_track_eval_1fps:test",
    ),
    "tracking": (
        "mevis_track_eval_1fps:test",
        "ref_yt_vos_track_eval_1fps:test",
        "ref_davis17_track_eval_1fps:test",
        "reasonvos_track_eval_1fps:test",
        "molmo2_video_track_eval_1fps:test",
    ),
    "test-video": (
        "mlvu_mc:test",
        "perception_test:test",
        "ego_schema:test",
        "motionbench:test",
        "long_video_bench_w_subtitle:test",
    ),
}
SETS["high-res-exp"] = (*SETS["high-res"], "chart_qa_exp")
SETS["single-image"] = SINGLE_IMAGE + SETS["image-pointing"]
# the reference's code
OTHER_SPELLINGS = {"test-low-res": "low-res-test", "test-high-res": "high-res-test"}
OTHER_SPELLINGS |= {name.replace("-", "_"): name for name in SETS if "-" in name}
# allenai/molmo2 writes _ only
OTHER_SPELLINGS |= {
    name: f"molmo2-{name.replace('_', '-')}" for name in ("short_video", "long_video")
}
# a task and its split under one name
SPLIT_SPELLINGS = {f"{name}_test": f"{name}:test" for name in TESTS}
