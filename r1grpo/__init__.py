"""r1grpo: the DeepSeek-R1 recipe on one engine that samples and trains with the same kernels."""

from .device import set_num_threads
from .model import Loss, Model
from .model_config import ModelConfig
from .sampling import Rollout

__all__ = ["Loss", "Model", "ModelConfig", "Rollout", "set_num_threads"]
__version__ = "0.1.0"
