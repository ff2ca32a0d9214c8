"""Image sets on the Hugging Face hub, as files through its fsspec file system."""

import httpx

from raydapt.data.files import Listing, first_line, list_data
from raydapt.errors import UserError

_PREFIX = "hf://datasets/"


def list_hub(address: str) -> Listing:
    """Lists the data files of ``hf://datasets/ORGANISATION/NAME`` or of a folder in it.

    A repository without Parquet files, tars or images is looked up in the hub's own Parquet conversion of it.

    Raises:
        UserError: If the address is of another shape, or nothing can be read there.
    """
    if not address.startswith(_PREFIX) or not address[len(_PREFIX) :].strip("/"):
        raise UserError(f"data.source={address!r} names no image set: write hf://datasets/ORGANISATION/NAME.")
    organisation, name, *folders = [*address[len(_PREFIX) :].strip("/").split("/"), ""]
    conversion = "/".join([_PREFIX + organisation, f"{name}@~parquet", *folders])
    problems = []
    for candidate in (address, conversion) if "@" not in address else (address,):
        try:
            found = list_data(candidate)
        except UserError as error:
            problems.append(first_line(error))
        except (httpx.HTTPError, ValueError) as error:
            problems.append(first_line(error))
            break
        else:
            if found.tables or found.tars or found.images:
                return found
            problems.append("it holds no Parquet files, tars or images")
    raise UserError(
        f"data.source={address!r} could not be read from the hub ({problems[0]}): "
        "check the name and the network, or download the set and give its folder."
    )
