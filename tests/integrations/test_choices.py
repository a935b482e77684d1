"""What all integrations have in common."""

import pytest

from jolkernels.integrations.choices import Choices, check_choices, missing
from jolkernels.settings import Arguments


def test_choices_are_arguments_of_the_loss():
    assert set(Choices.__annotations__) <= set(Arguments.__dataclass_fields__)


def test_a_name_that_is_no_choice_is_refused():
    check_choices({"lam": 1.5, "sync_group": None}, "use_joint_loss")
    with pytest.raises(TypeError, match="use_joint_loss: got coding, wanted some of lam, "):
        check_choices({"lam": 1.5, "coding": "delta"}, "use_joint_loss")


def test_a_missing_framework_is_named_with_what_to_do():
    error = missing("jolkernels.integrations.mmdet", "mmdet")
    assert str(error) == "jolkernels.integrations.mmdet needs mmdet: pip install mmdet"
