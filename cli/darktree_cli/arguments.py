"""Arguments that several commands take; what was typed as a service takes it, or a usage error (exit code 2)."""

from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError

Body = TypeVar("Body", bound=BaseModel)
CustomerArgument = Annotated[str, typer.Argument(help="The customer's id.")]


def checked(schema: type[Body], **fields: Any) -> Body:
    """Return a body of the service's own schema. Raises BadParameter naming the field."""
    try:
        return schema(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise typer.BadParameter(f"{place}: {first['msg']}") from error
