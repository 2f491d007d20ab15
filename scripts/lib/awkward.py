"""Layers that are legal, or nearly, and seldom met: small stacks of them, each with a name.

What they mean is not said here: scripts/awkward-layers asks containerd.
"""

import collections
import hashlib
import json

import awkward_errors
import awkward_stacks
import awkward_tars

# A layer as it travels: the blob, how its media type calls the compression, and the tar that it
# is meant to hold.
Layer = collections.namedtuple("Layer", "blob compression tar")
Case = collections.namedtuple("Case", "group name about layers")

GROUPS = [
    ("dialects of tar", awkward_tars.DIALECTS),
    ("compression", awkward_tars.COMPRESSIONS),
    ("within a layer", awkward_stacks.ONE_LAYER),
    ("across layers", awkward_stacks.LAYERS),
    ("what cannot be applied", awkward_errors.ERRORS),
]
REPOSITORY = "example.test/awkward"  # of the images' names in containerd


def cases():
    """All of them, in the order of the table."""
    found = []
    for group, functions in GROUPS:
        for function in functions:
            layers = function()
            layers = layers if isinstance(layers, list) else [layers]
            name = function.__name__.replace("_", "-")
            found.append(Case(group, name, function.__doc__, [as_layer(layer) for layer in layers]))
    repeated = [name for name, count in collections.Counter(case.name for case in found).items() if count > 1]
    assert not repeated, repeated
    return found


def as_layer(layer):
    """Bare tars travel as gzip, as most layers do."""
    return Layer(*layer) if isinstance(layer, tuple) else Layer(awkward_tars.gzip(layer), "gzip", layer)


def write_layout(folder, chosen):
    """An OCI layout with an image for each case, named and tagged after it."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def add(data, kind, **more):
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data), **more}

    manifests = []
    for case in chosen:
        suffix = {"none": "", "gzip": "+gzip", "zstd": "+zstd"}
        layers = [add(layer.blob, f"layer.v1.tar{suffix[layer.compression]}") for layer in case.layers]
        diff_ids = [f"sha256:{hashlib.sha256(layer.tar).hexdigest()}" for layer in case.layers]
        config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        manifest = {"schemaVersion": 2, "config": add(config, "config.v1+json"), "layers": layers}
        names = {"org.opencontainers.image.ref.name": case.name,
                 "io.containerd.image.name": f"{REPOSITORY}/{case.name}:latest"}
        manifests.append(add(manifest, "manifest.v1+json", annotations=names))
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
