"""Damage binary files: arrays, safetensors, zip and tar archives, protocol buffers and images."""

import io
import json
import random
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable

from tests.chaos.documents import Damage, damage_bytes, damage_json, damage_value, dump_json
from tests.chaos.values import RAW_JSON, shorten

SHAPES = (
    "()",
    "(0,)",
    "(-1,)",
    "(1000000000,)",
    "(1000000000, 64)",
    "(9223372036854775807,)",
    "(2, 2, 2)",
    "(1, 64)",
    "[1]",
    "(1e9,)",
    "('a',)",
    "((1,),)",
    "(" + "1, " * 70 + ")",
    "(" + "9" * 400 + ",)",
    "None",
    "(True,)",
    "(0, 1000000000000)",
)
DTYPES = (
    "'|O'",
    "'<f4'",
    "'>f4'",
    "'<i8'",
    "'|S1000000000'",
    "'<U100000000'",
    "'|b1'",
    "'<c16'",
    "'<M8[s]'",
    "'|V0'",
    "''",
    "'x'",
    "[('a', '<f4')]",
    "[('a', '|O')]",
    "None",
    "'<f2'",
    "'" + "<f4" * 500 + "'",
    "{'names': ['a'], 'formats': ['O']}",
)
RAW_HEADERS = (
    "",
    "{",
    "{}",
    "__import__('os').abort()",
    "(" * 5000,
    "[" * 100 + "]" * 100,
    "9" * 5000,
    "\0" * 60,
    "{'a': " * 300,
    "-" * 3000 + "1",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 1}",
)
PICKLE_CALL = b"cos\nabort\n(tR."
"""A pickle that ends the process that loads it."""

BOMB_MEGABYTES = 250


def damage_array(content: bytes, rng: random.Random) -> Damage:
    """Change the header of a npy file, or its data."""
    if content[:6] != b"\x93NUMPY" or rng.random() < 0.2:
        return damage_bytes(content, rng)
    size = struct.unpack("<H", content[8:10])[0]
    header, data = content[10 : 10 + size].decode("latin-1"), content[10 + size :]
    kind = rng.choice(("shape", "shape", "type", "type", "order", "raw", "version", "length", "data"))
    change = kind
    if kind == "shape":
        shape = rng.choice(SHAPES)
        start, end = header.index("(", header.index("'shape'")), header.rindex(")") + 1
        header, change = header[:start] + shape + header[end:], f"shape {shorten(shape)}"
    elif kind == "type":
        dtype = rng.choice(DTYPES)
        start, end = header.index("'descr': ") + 9, header.index(", 'fortran_order'")
        header, change = header[:start] + dtype + header[end:], f"dtype {shorten(dtype)}"
    elif kind == "order":
        header = header.replace("False", rng.choice(("True", "1", "None", "'a'")))
    elif kind == "raw":
        header = rng.choice(RAW_HEADERS)
        change = f"header {shorten(header)}"
    elif kind == "data":
        data, change = damage_bytes(data, rng)
    version = rng.choice((b"\x02\x00", b"\x03\x00", b"\x09\x00", b"\x00\x00")) if kind == "version" else b"\x01\x00"
    encoded = header.encode("latin-1", errors="replace")
    length = rng.choice((0, 65535, len(encoded) + 5)) if kind == "length" else len(encoded)
    packed = (
        struct.pack("<H", min(length, 65535)) if version[0] < 2 else struct.pack("<I", rng.choice((length, 2**32 - 1)))
    )
    return b"\x93NUMPY" + version + packed + encoded + data, change


def damage_safetensors(content: bytes, rng: random.Random) -> Damage:
    """Change the header of a safetensors file, or its data."""
    if rng.random() < 0.2 or len(content) < 8:
        return damage_bytes(content, rng)
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    if rng.random() < 0.15:
        length = rng.choice((0, 1, size - 1, size + 8, 10**8, 2**63, 2**64 - 1))
        return struct.pack("<Q", length) + content[8:], f"header length {length}"
    if rng.random() < 0.15:
        values = rng.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", b"\0\0\0\0"))
        return content[: 8 + size] + (values * (len(data) // 4 + 1))[: len(data)], f"all values {values!r}"
    changed, raw, change = damage_value(header, rng, RAW_JSON)
    encoded = dump_json(changed, raw, None)
    return struct.pack("<Q", len(encoded)) + encoded + data, change


def damage_zip(content: bytes, rng: random.Random, member_damage: Callable[[bytes, random.Random], Damage]) -> Damage:
    """Change the members of a zip archive, or its bytes."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except (zipfile.BadZipFile, zlib.error, ValueError):
        return damage_bytes(content, rng)
    kind = rng.choice(
        ("member", "member", "member", "member", "bytes", "remove", "repeat", "add", "rename", "bomb", "size", "swap")
    )
    if kind == "bytes" or not members:
        return damage_bytes(content, rng)
    number = rng.randrange(len(members))
    name, data = members[number]
    change = f"{kind}: {name}"
    compression = zipfile.ZIP_STORED
    if kind == "member":
        data, what = member_damage(data, rng)
        members[number], change = (name, data), f"{name}: {what}"
    elif kind == "remove":
        members.pop(number)
    elif kind == "repeat":
        members.insert(number, (name, data))
    elif kind == "add":
        members.append((rng.choice(("../x", "/x", "x" * 5000, "a\0b", "data.pkl", "extra/", "\U0001f600")), b"x" * 100))
    elif kind == "rename":
        members[number] = (rng.choice(("../x", "x", "keys.npy", "data.pkl", "")), data)
    elif kind == "swap":
        other = rng.randrange(len(members))
        members[number], members[other] = (name, members[other][1]), (members[other][0], data)
    elif kind == "bomb":
        compression = zipfile.ZIP_DEFLATED
        members[number] = (name, data + bytes(BOMB_MEGABYTES << 20))
    output = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(output, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of repeated names
        for member, data in members:
            archive.writestr(zipfile.ZipInfo(member or "-"), data, compression, 1)
    packed = output.getvalue()
    if kind == "size":  # the directory of the archive declares more bytes than the member has
        position = packed.rindex(b"PK\x01\x02")
        size = struct.pack("<I", rng.choice((0, 10**9, 2**32 - 1)))
        packed = packed[: position + 24] + size + packed[position + 28 :]
    return packed, change


def damage_npz(content: bytes, rng: random.Random) -> Damage:
    """Change a npz file."""
    return damage_zip(content, rng, damage_array)


def damage_pickled_member(content: bytes, rng: random.Random) -> Damage:
    """Change a member of a file of torch.save or torch.jit.save: a pickle, code, or data."""
    if rng.random() < 0.2:
        return PICKLE_CALL, "a pickle that calls os.abort"
    if content.startswith(b"class") or b"def forward" in content:
        lines = content.split(b"\n")
        number = rng.randrange(len(lines))
        lines[number : number + rng.choice((0, 1))] = rng.choice(
            (
                [b"  while True:", b"    pass"],
                [b""],
                [lines[number]] * 3,
                [b"  x = torch.ones([1000000000, 1000])"],
                [b"("],
            )
        )
        return b"\n".join(lines), f"code changed at line {number + 1}"
    return damage_bytes(content, rng)


def damage_torch_file(content: bytes, rng: random.Random) -> Damage:
    """Change a file of torch.save or torch.jit.save."""
    if rng.random() < 0.05:
        return PICKLE_CALL, "only a pickle that calls os.abort"
    return damage_zip(content, rng, damage_pickled_member)


def damage_onnx(content: bytes, rng: random.Random) -> Damage:
    """Change an ONNX graph through its fields, or its bytes."""
    if rng.random() < 0.4:
        return damage_bytes(content, rng)
    import onnx

    model = onnx.load_model_from_string(content)
    graph = model.graph
    node, tensor = rng.choice(graph.node), rng.choice(graph.initializer)
    kind = rng.choice(
        ("operator", "input", "dims", "type", "external", "remove", "loop", "attribute", "version", "shape")
    )
    if kind == "operator":
        node.op_type = rng.choice(
            ("Loop", "If", "Scan", "Nothing", "", "Abs", "Softmax", "Reshape", "Expand", "ConvTranspose")
        )
    elif kind == "input":
        node.input[0] = rng.choice(("", "missing", node.output[0], "[/a]"))
    elif kind == "dims":
        tensor.dims[0] = rng.choice((0, -1, 10**9, 2**62))
    elif kind == "type":
        tensor.data_type = rng.choice((0, 7, 8, 16, 99))
    elif kind == "external":
        tensor.data_location = 1
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", rng.choice(("/etc/passwd", "../../x", "missing.bin", "/dev/zero", "."))
    elif kind == "remove":
        graph.node.remove(node)
    elif kind == "loop":
        node.input[0] = graph.node[-1].output[0]
    elif kind == "attribute":
        attribute = node.attribute.add()
        attribute.name, attribute.type, attribute.i = (
            rng.choice(("pads", "axis", "strides", "group")),
            2,
            rng.choice((-1, 0, 10**9)),
        )
    elif kind == "version":
        model.opset_import[0].version = rng.choice((0, 1, 99, 2**40))
    elif kind == "shape":
        dimension = graph.input[0].type.tensor_type.shape.dim[rng.randrange(4)]
        dimension.dim_value = rng.choice((0, 1, 4096, 10**6, -1))
    return model.SerializeToString(), f"{kind} of {node.op_type} or {tensor.name}"


MEMBER_TYPES = (
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
    tarfile.DIRTYPE,
    tarfile.GNUTYPE_SPARSE,
)


def damage_tar(content: bytes, rng: random.Random) -> Damage:
    """Change the members of a tar archive: labels, images, names, types, sizes, order."""
    kind = rng.choice(
        (
            "labels",
            "labels",
            "labels",
            "image",
            "image",
            "name",
            "type",
            "size",
            "order",
            "remove",
            "repeat",
            "bytes",
            "extra",
        )
    )
    if kind == "bytes":
        return damage_bytes(content, rng)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = [(info, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]
    suffix = {"labels": ".json", "image": ".jpg"}.get(kind, "")
    number = rng.choice([index for index, (info, _) in enumerate(members) if info.name.endswith(suffix)])
    info, data = members[number]
    change = f"{kind}: {info.name}"
    if kind == "labels":
        data, what = damage_json(data, rng)
        members[number], change = (info, data), f"{info.name}: {what}"
    elif kind == "image":
        data, what = damage_image(data, rng)
        members[number], change = (info, data), f"{info.name}: {what}"
    elif kind == "name":
        info.name = rng.choice(
            ("../x.jpg", "/x.jpg", "é.jpg", "x" * 300 + ".jpg", ".jpg", "x", "a\nb.jpg", "[/a].jpg", "")
        )
    elif kind == "type":
        info.type, info.linkname = rng.choice(MEMBER_TYPES), rng.choice(("", "/dev/zero", info.name, "missing"))
    elif kind == "order":
        rng.shuffle(members)
    elif kind == "remove":
        members.pop(number)
    elif kind == "repeat":
        members.insert(number, (info, data))
    elif kind == "extra":
        members.insert(number, (tarfile.TarInfo("x" * rng.choice((1, 5000)) + rng.choice((".jpg", ".json", ""))), b""))
    output = io.BytesIO()
    needs_pax = any(len(info.name) > 100 or not info.name.isascii() for info, _ in members)
    tar_format = tarfile.PAX_FORMAT if needs_pax else rng.choice((tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(fileobj=output, mode="w", format=tar_format) as archive:
        for member, member_data in members:
            copied = tarfile.TarInfo(member.name)
            copied.type, copied.linkname, copied.size = member.type, member.linkname, len(member_data)
            if member.type != tarfile.REGTYPE:
                copied.size = 0
            archive.addfile(copied, io.BytesIO(member_data))
    packed = output.getvalue()
    if kind == "size":
        position = packed.index(info.name.encode())
        size = rng.choice(
            (
                b"00000000000\0",
                b"77777777777\0",
                b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
                b"-0000000001\0",
                b"           \0",
            )
        )
        header = (
            packed[position : position + 124] + size + b"\0" * 12 + b" " * 8 + packed[position + 156 : position + 512]
        )
        checksum = b"%06o\0 " % sum(header)
        packed = packed[:position] + header[:148] + checksum + header[156:] + packed[position + 512 :]
    return packed, change


def damage_image(content: bytes, rng: random.Random) -> Damage:
    """Change an image file: bytes, or an image that another program could have written."""
    kind = rng.random()
    if kind < 0.4:
        return damage_bytes(content, rng)
    if kind < 0.65:
        return declare_pixels(content, rng)
    return draw_unusual_image(rng)


def declare_pixels(content: bytes, rng: random.Random) -> Damage:
    """Write other sides into the header of an image."""
    width, height = rng.choice(
        ((1, 24_000_000), (65_500, 65_500), (0, 0), (2**31 - 1, 2**31 - 1), (1, 1), (20_000, 20_000), (30_000, 3))
    )
    change = f"the header declares {width} x {height} pixels"
    if content[:8] == b"\x89PNG\r\n\x1a\n":
        header = b"IHDR" + struct.pack(">II", width, height) + content[24:29]
        return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:], change
    if content[:2] == b"\xff\xd8":
        for mark in (b"\xff\xc0", b"\xff\xc2"):
            position = content.find(mark)
            if position > 0:
                sides = struct.pack(">HH", height % 65536, width % 65536)
                return content[: position + 5] + sides + content[position + 9 :], change
    if content[:3] == b"GIF":
        return content[:6] + struct.pack("<HH", width % 65536, height % 65536) + content[10:], change
    if content[:2] == b"BM":
        return content[:18] + struct.pack("<ii", width, height if height < 2**31 else -height) + content[26:], change
    if content[:2] == b"II":
        position = struct.unpack("<I", content[4:8])[0] + 2
        sides = struct.pack("<HHII", 256, 4, 1, width) + struct.pack("<HHII", 257, 4, 1, height)
        return content[:position] + sides + content[position + 24 :], change
    return damage_bytes(content, rng)


IMAGE_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F", "YCbCr")
SIDES = ((1, 1), (1, 3000), (3000, 1), (2, 2), (1, 200_000), (1500, 1500), (24, 20))


def draw_unusual_image(rng: random.Random) -> Damage:
    """Return a valid image of an unusual size, mode or format."""
    from PIL import Image, PngImagePlugin

    mode, sides = rng.choice(IMAGE_MODES), rng.choice(SIDES)
    image = Image.new(mode, sides)
    output = io.BytesIO()
    options: dict[str, object] = {}
    name = rng.choice(("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "ICO"))
    if name in ("GIF", "WEBP", "TIFF", "PNG") and rng.random() < 0.3 and sides[0] * sides[1] < 10_000:
        options = {"save_all": True, "append_images": [image] * rng.choice((1, 300))}
    if name == "PNG" and rng.random() < 0.3:
        text = PngImagePlugin.PngInfo()
        text.add_text("comment", "x" * (30 << 20), zip=True)
        options["pnginfo"] = text
    if rng.random() < 0.2:
        options["icc_profile"] = b"x" * 100
    if rng.random() < 0.2:
        options["exif"] = b"Exif\0\0" + bytes(rng.randrange(256) for _ in range(40))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.save(output, name, **options)
    except Exception:  # this format cannot store the image
        Image.new("RGB", (24, 20)).save(output, "PNG")
    return output.getvalue(), f"{name}, mode {mode}, {sides[0]} x {sides[1]} pixels, {', '.join(options) or 'plain'}"
