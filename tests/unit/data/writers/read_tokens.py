"""Token ids as a package's own code reads them: `python read_tokens.py EXPORTER FOLDER TOKENS_OF_A_SEQUENCE`, JSON on standard output."""

import importlib.machinery
import json
import os
import sys
import types
from pathlib import Path

sys.path.extend(filter(None, os.environ.get("OPMIX_TRAINERS", "").split(os.pathsep)))
KIND, FOLDER, LENGTH = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])


def megatron():
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    data = IndexedDataset(str(FOLDER / "text_document"))
    documents = data.document_indices.tolist()
    assert documents == list(range(len(documents)))
    return [data[i].tolist() for i in range(len(data))]


def nanotron():
    from datatrove.utils.dataset import DatatroveFolderDataset

    width = int((FOLDER / "00000.ds.metadata").read_text().splitlines()[0].split("|")[1])
    data = DatatroveFolderDataset(str(FOLDER), LENGTH - 1, token_size=width)
    return [data[i]["input_ids"].tolist() for i in range(len(data))]


def litdata():
    from litdata import StreamingDataset, TokensLoader

    data = StreamingDataset(input_dir=str(FOLDER), item_loader=TokensLoader(block_size=LENGTH), shuffle=False)
    return [data[i].tolist() for i in range(len(data))]


def streaming():
    place = importlib.machinery.PathFinder.find_spec("streaming", sys.path)
    package = types.ModuleType("streaming")  # its __init__ needs torchvision
    package.__path__ = list(place.submodule_search_locations)
    sys.modules["streaming"] = package
    from streaming.base.dataset import StreamingDataset

    data = StreamingDataset(local=str(FOLDER), batch_size=1, shuffle=False)
    return [data[i]["tokens"].tolist() for i in range(len(data))]


sys.stdout.write("\n" + json.dumps({f.__name__: f for f in (megatron, nanotron, litdata, streaming)}[KIND]()) + "\n")
