#!/usr/bin/env python3
"""Write one docker-archive tar with any number of single-layer images.

No daemon, no registry: the archive is what `ctr images import`,
`podman load` and `kind load image-archive` read.

    mkimage.py OUT.tar SPEC.json

SPEC.json is a list of
    {"ref": "localhost/pause:3.10",
     "files": {"/pause": "/path/on/this/machine"},   # copied with mode 0755
     "tree": "/path/of/a/directory",                 # optional: its whole content
     "entrypoint": ["/pause"], "cmd": [], "env": [], "user": "",
     "labels": {"org.opencontainers.image.title": "..."}}

Images of one archive that have the same layer share it.

The output depends on the inputs only (fixed times and owners).
"""
import hashlib
import io
import json
import os
import platform
import sys
import tarfile

EPOCH = 1700000000
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def reset(info):
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime = EPOCH
    return info


def layer_of(spec, path):
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        made = set()

        def parents(name):
            parts = name.strip("/").split("/")[:-1]
            for i in range(len(parts)):
                d = "/".join(parts[: i + 1])
                if d not in made:
                    made.add(d)
                    info = reset(tarfile.TarInfo(d))
                    info.type, info.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(info)

        tree = spec.get("tree")
        if tree:
            for base, dirs, files in os.walk(tree):
                dirs.sort()
                for name in sorted(dirs + files):
                    full = os.path.join(base, name)
                    rel = os.path.relpath(full, tree)
                    if os.path.isdir(full) and not os.path.islink(full):
                        made.add(rel)
                    tar.add(full, arcname=rel, recursive=False, filter=reset)
        for name in sorted(spec.get("files", {})):
            parents(name)
            info = reset(tar.gettarinfo(spec["files"][name], arcname=name.strip("/")))
            info.mode = 0o755
            with open(spec["files"][name], "rb") as src:
                tar.addfile(info, src)


def main():
    out, specs = sys.argv[1], json.load(open(sys.argv[2]))
    manifest, written = [], set()
    with tarfile.open(out, "w", format=tarfile.GNU_FORMAT) as tar:

        def put(name, data=None, path=None):
            if name in written:
                return
            written.add(name)
            if path:
                info = reset(tar.gettarinfo(path, arcname=name))
                info.mode = 0o644
                with open(path, "rb") as src:
                    tar.addfile(info, src)
            else:
                info = reset(tarfile.TarInfo(name))
                info.size, info.mode = len(data), 0o644
                tar.addfile(info, io.BytesIO(data))

        for spec in specs:
            tmp = out + ".layer"
            layer_of(spec, tmp)
            digest = hashlib.sha256()
            with open(tmp, "rb") as f:
                for chunk in iter(lambda: f.read(1 << 20), b""):
                    digest.update(chunk)
            diff = digest.hexdigest()
            config = {
                "architecture": ARCHITECTURE,
                "os": "linux",
                "created": "2023-11-14T22:13:20Z",
                "config": {
                    "Entrypoint": spec.get("entrypoint") or None,
                    "Cmd": spec.get("cmd") or None,
                    "Env": spec.get("env") or ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                    "User": spec.get("user", ""),
                    "WorkingDir": "/",
                    "Labels": spec.get("labels") or None,
                },
                "rootfs": {"type": "layers", "diff_ids": ["sha256:" + diff]},
                "history": [{"created": "2023-11-14T22:13:20Z", "created_by": "mkimage.py"}],
            }
            raw = json.dumps(config, sort_keys=True).encode()
            cfg = hashlib.sha256(raw).hexdigest() + ".json"
            put(cfg, data=raw)
            put(diff + "/layer.tar", path=tmp)
            os.unlink(tmp)
            manifest.append({"Config": cfg, "RepoTags": [spec["ref"]], "Layers": [diff + "/layer.tar"]})
        put("manifest.json", data=json.dumps(manifest).encode())


main()
