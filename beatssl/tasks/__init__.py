"""The downstream tasks. A new one is its file and a line here."""

from beatssl.settings import ConfigError
from beatssl.tasks.base import Task
from beatssl.tasks.classify import Classification
from beatssl.tasks.compare import LabelDraws, MoreFolds
from beatssl.tasks.embedding import Embedding
from beatssl.tasks.from_probe import FromProbe
from beatssl.tasks.plain import PlainDecoder, PlainProbe
from beatssl.tasks.segment import Segmentation

LISTED = (
    Classification(), Segmentation(), Embedding(), LabelDraws(), MoreFolds(),
    PlainProbe(), PlainDecoder(), FromProbe(),
)  # fmt: skip
TASKS: dict[str, Task] = {task.key: task for task in LISTED}


def task_of(name: str) -> Task:
    """The task of this key, or of this name in the results.

    Raises:
        ConfigError: there is none; lists those that there are.
    """
    for key, task in TASKS.items():
        if name in (key, task.name):
            return task
    raise ConfigError(f"task {name!r} is not known; known: {', '.join(TASKS)}")
