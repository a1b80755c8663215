"""The paper's claims about kernels and feature maps, as studies that anyone can run again."""

from convsim.lab.studies.orthogonality import ORTHOGONALITY
from convsim.lab.studies.pairs import PAIRS
from convsim.lab.studies.similarity import SIMILARITY
from convsim.lab.studies.study import Study, run_study

STUDIES: dict[str, Study] = {study.name: study for study in (ORTHOGONALITY, SIMILARITY, PAIRS)}

__all__ = ["STUDIES", "Study", "run_study"]
