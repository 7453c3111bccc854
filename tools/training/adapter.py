"""LoRA: small matrices beside the frozen ones of the language model, by PEFT, in upstream's shape."""

import warnings

from peft import LoraConfig, get_peft_model

from tools.training.network import Trainee
from tools.training.stages import Stage

# Every linear layer of a decoder's block. Upstream's way to name them would also give the tower's layers of
# these names an adapter, which it then throws away when it builds the tower anew.
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def add_adapter(trainee: Trainee, stage: Stage) -> None:
    """Puts an adapter into the decoder; call `stages.parameter_groups` afterwards.

    Its matrices are kept in float32, also beside weights in 16 bits. Begins as an adapter that changes
    nothing: A is random (torch's global generator), B is 0.
    """
    settings = LoraConfig(
        r=stage.rank,
        lora_alpha=int(stage.alpha) if stage.alpha == int(stage.alpha) else stage.alpha,
        lora_dropout=stage.dropout,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=TARGETS,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what PEFT expects in a model that came from the hub
        trainee.decoder = get_peft_model(trainee.decoder, settings)
    trainee.decoder.peft_config["default"].base_model_name_or_path = str(trainee.checkpoint.path)
