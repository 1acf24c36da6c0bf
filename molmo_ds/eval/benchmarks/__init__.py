"""Every benchmark, one file each, in a table by the name that the command line has for it."""

from molmo_ds.eval.benchmarks import (
    a_okvqa,
    ai2d,
    android_control,
    by_style,
    captions,
    chart_qa,
    clocks,
    counting,
    doc_qa,
    info_qa,
    math_vista,
    mmmu,
    okvqa,
    pointing,
    real_world_qa,
    scene_graphs,
    science_qa,
    st_qa,
    text_vqa,
    vqa2,
)
from molmo_ds.eval.task import Task

FILES = (
    # the paper's eleven
    *(ai2d, chart_qa, vqa2, doc_qa, info_qa, text_vqa, real_world_qa, mmmu, math_vista, counting),
    *(okvqa, a_okvqa, science_qa, st_qa, scene_graphs),
    *(pointing, android_control, clocks),
    *(captions, by_style),
)
BENCHMARKS: dict[str, Task] = {task.name: task for file in FILES for task in file.TASKS}
