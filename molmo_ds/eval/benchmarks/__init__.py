"""Every benchmark, one file each, in a table by the name that the command line has for it."""

from molmo_ds.eval.benchmarks import text_vqa
from molmo_ds.eval.task import Task

FILES = (text_vqa,)
BENCHMARKS: dict[str, Task] = {task.name: task for file in FILES for task in file.TASKS}
