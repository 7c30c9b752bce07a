"""Other libraries' errors within our one-line messages."""

import pytest
from pydantic import BaseModel, Field, ValidationError, field_validator

from intclip.errors import first_problem, reason


class Section(BaseModel, extra="forbid"):
    size: int = Field(default=1, gt=0)
    name: str = ""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name == "Bad":
            raise ValueError("Bad, of all names, is taken")
        return name


class Whole(BaseModel):
    section: Section


def validation_error(**fields: object) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Whole.model_validate({"section": fields})
    return caught.value


def test_an_error_of_the_system_is_its_reason_alone():
    error = PermissionError(13, "Permission denied", "/secret/place")
    assert reason(error) == "Permission denied"
    assert reason(OSError("Couldn't deserialize\n  thrift")) == "Couldn't deserialize thrift"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"size": 0}, ("section.size", "input should be greater than 0")),
        ({"name": "Bad"}, ("section.name", "Bad, of all names, is taken")),
        ({"sise": 1}, ("section.sise", "extra inputs are not permitted")),
    ],
)
def test_of_pydantics_problems_the_first_with_its_place(fields, expected):
    error = validation_error(**fields)
    assert first_problem(error) == expected
    assert reason(error) == ": ".join(expected)


def test_a_line_is_never_empty_nor_long():
    assert reason(ValueError()) == "ValueError"
    assert reason(ValueError("word " * 100), most=20) == "word word word word"[:20] + " "
