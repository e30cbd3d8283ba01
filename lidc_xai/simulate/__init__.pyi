from .crops import simulate_crop as simulate_crop
from .dicom import write_dicom as write_dicom
from .nodule.expression import independent_ratings as independent_ratings
from .nodule.expression import with_ratings as with_ratings
from .series import SimulatedCT as SimulatedCT
from .series import simulate_ct as simulate_ct
from .to_store import simulate_store as simulate_store
