"""Plans: the C struct, the chip's limits, and that a plan is a function of its desc alone."""

import ctypes
import math
import random
from dataclasses import fields, replace

import numpy as np
import pytest
from pa_hp import build
from pa_hp.tiling import partition as partition_module
from pa_hp.tiling import plan as plan_module
from pa_hp.tiling.plan import DecodePlan, candidates, cost, plan

CONSTANTS = {
    "FRACTAL": "kFractal",
    "MAX_ROWS": "kMaxRows",
    "MAX_SCORES": "kMaxScores",
    "SLOTS": "kSlots",
    "ROW_TAIL": "kRowTail",
    "LANES": "kLanes",
    "STATS": "kStats",
    "STAT_LANES": "kStatLanes",
    "L0": "2 * kL0Half",
    "TILES": "kTiles",
    "MIN_SHARE": "kMinShare",
    "MERGE_ALONE": "kMergeAlone",
    "PARTS": "kParts",
    "SHORT_LOAD": "kShortLoad",
    "EVEN_TILES": "kEvenTiles",
    "LAST_LOAD": "kLastLoad",
}
ENUMS = {"float16": "DType::kFloat16", "bfloat16": "DType::kBFloat16"}


# ---- The C side ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def header(compile_library, tmp_path_factory):
    """What the compiler makes of plan.h: arrays of int64 by name."""
    names = plan_module.LAYOUT.names
    values = {
        "sizes": ["sizeof(DecodePlan)", *(f"sizeof(DecodePlan::{n})" for n in names)],
        "offsets": [f"offsetof(DecodePlan, {n})" for n in names],
        "floats": [f"std::is_floating_point_v<decltype(DecodePlan::{n})>" for n in names],
        "constants": list(CONSTANTS.values()),
        "enums": [f"static_cast<int64_t>({name})" for name in ENUMS.values()],
    }
    source = tmp_path_factory.mktemp("header") / "plan.cpp"
    lines = [
        f'#include "{build.ROOT}/kernels/npu/plan.h"',
        "#include <cstddef>",
        "#include <type_traits>",
        "using namespace pa_hp;",
        "using namespace pa_hp::npu;",
        *(f'extern "C" {{ int64_t {k}[] = {{{", ".join(v)}}}; }}' for k, v in values.items()),
    ]
    source.write_text("\n".join(lines) + "\n")
    library = compile_library(source)
    return {k: list((ctypes.c_int64 * len(v)).in_dll(library, k)) for k, v in values.items()}


def test_struct(header):
    layout = plan_module.LAYOUT
    types = [layout.fields[name][0] for name in layout.names]
    assert header["sizes"] == [layout.itemsize, *(t.itemsize for t in types)]
    assert header["offsets"] == [layout.fields[name][1] for name in layout.names]
    assert header["floats"] == [t.kind == "f" for t in types]


def test_constants(header):
    here = vars(plan_module) | vars(partition_module)
    assert header["constants"] == [here[name] for name in CONSTANTS]
    assert header["enums"] == [plan_module.DTYPES[name] for name in ENUMS]


def test_pack(make_desc):
    desc = make_desc(scale=0.1, key_strides=(1 << 40, 5, 7))
    the_plan = plan(desc)
    words = the_plan.pack()
    assert words.dtype == np.int32
    (row,) = words.view(plan_module.LAYOUT)
    for field in fields(DecodePlan):
        value = getattr(the_plan, field.name)
        assert row[field.name] == (np.float32(value) if field.name == "scale" else value)


# ---- Any shape ----------------------------------------------------------------------------------


def random_desc(rng, make_desc):
    kv_heads, group = rng.randint(1, 16), rng.randint(1, 64)
    head_dim, head_dim_v = 16 * rng.randint(1, 16), 16 * rng.randint(1, 16)
    desc = make_desc(
        dtype=rng.choice(["float16", "bfloat16"]),
        batch=rng.choice([1, 2, 7, 64, 1024, rng.randint(1, 1024)]),
        heads=kv_heads * rng.choice([1, 4, 8, group, 64]),
        kv_heads=kv_heads,
        head_dim=head_dim,
        head_dim_v=rng.choice([head_dim, head_dim_v]),
        block_size=rng.choice([16 * rng.randint(1, 32), 16, 128, 512]),
        max_blocks=rng.randint(1, 4096),
        clusters=rng.choice([20, 24, 25, 1]),
    )
    block, token, head = desc.key_strides
    layouts = [
        desc.key_strides,
        (2 * block, token, head),  # kv_cache[:, 0]
        (block, head, desc.block_size * head),  # (num_blocks, kv_heads, block_size, head_dim)
        (block * 64, token * 64, head),
    ]
    return replace(desc, key_strides=rng.choice(layouts))


def memory_maps(desc, p):
    """Where each buffer is and how much of it the kernel touches, as cube.h and vector.h do it."""
    item, m, half = 2, 16 * math.ceil(p.group / 16), math.ceil(p.rows / 2)
    pitch, width = 16 * math.ceil(p.rows / 16), p.head_dim_v + 16
    columns = 64 * math.ceil(p.tile_tokens / 64)
    # Rows that load_rows_l0a reads behind the last column's, of the last head.
    behind = max(0, (p.tile_heads - 1) * p.group + m - pitch) * 32
    query, weights = pitch * p.head_dim * item + behind, pitch * p.tile_tokens * item + behind
    slot = p.chunk_tokens * p.tile_heads * max(p.head_dim, p.head_dim_v) * item
    l1 = [(i * p.l1_slot_bytes, slot) for i in range(3)]
    l1 += [(p.l1_query + i * p.l1_query_bytes, query) for i in range(2)]
    l1 += [(p.l1_weights + i * p.l1_weights_bytes, weights) for i in range(2)]
    l0c = [(i * p.l0c_score_bytes, m * p.key_step * 4) for i in range(2)]
    l0c += [(p.l0c_output, p.tile_heads * m * p.head_dim_v * 4)]
    ub = [
        (p.ub_scores, half * columns * 4),
        (p.ub_weights, half * columns * item),
        (p.ub_output, half * p.head_dim_v * 4),
        (p.ub_acc, 8 * math.ceil(half / 8) * width * 4),  # tails come for eight rows at a time
        (p.ub_fold, half * 64 * 4),
        (p.ub_result, max(half, min(desc.heads, 32)) * p.head_dim_v * item),
        (p.ub_stats, 34 * 64 * 4),
        # Of all parts and, of half of them, the larger: p.merge_rows + 32 rows at most.
        (p.ub_merge_weights, (2 * p.merge_rows + (p.merge_rows + 32) // 2) * 32),
        (p.ub_merge, p.merge_rows * p.head_dim_v * 4),
    ]
    workspace = [
        (0, 3 * 16384 * 4),
        (p.ws_weights, 3 * 16384 * item),
        (p.ws_output, 3 * 64 * p.head_dim_v * 4),
        (p.ws_partials, 64 * width * 4),
    ]
    return {
        "UB": (ub, 192 << 10, 32),
        "L1": (l1, 512 << 10, 32),
        "L0C": (l0c, 128 << 10, 64),
        "workspace": (workspace, p.ws_bytes, 512),
        "half of L0A, Q": ([(0, m * p.head_dim * item)], 32 << 10, 512),
        "half of L0A, P": ([(0, m * p.value_step * item)], 32 << 10, 512),
        "half of L0B, K": ([(0, p.key_step * p.head_dim * item)], 32 << 10, 512),
        "half of L0B, V": ([(0, p.value_step * p.head_dim_v * item)], 32 << 10, 512),
    }


def check_memory(desc, p):
    for name, (buffers, size, alignment) in memory_maps(desc, p).items():
        at = 0
        for offset, count in sorted(buffers):
            assert offset >= at, f"{name} at {offset}: buffers overlap"
            assert offset % alignment == 0, f"{name} at {offset}: not aligned to {alignment}"
            at = offset + count
        assert at <= size, f"{name}: {at} of {size} bytes"


def check_sizes(desc, p):
    assert p.tile_heads * p.head_groups == desc.kv_heads
    assert p.rows == p.tile_heads * p.group <= 64
    assert p.rows * p.tile_tokens <= 16384
    assert p.tile_tokens % p.chunk_tokens == 0
    assert 0 in (p.block_size % p.chunk_tokens, p.chunk_tokens % p.block_size)
    assert p.chunk_tokens % 16 == p.key_step % 16 == p.value_step % 16 == 0
    assert 0 < p.key_step <= p.chunk_tokens
    assert 0 < p.value_step <= p.chunk_tokens
    assert p.item_cost >= 1
    assert p.item_floor >= 1
    assert p.merge_rows >= desc.clusters


def check_fields(desc, p):
    """What the instructions' fields hold: their bits, and the documented limits below those."""
    half, blocks = math.ceil(p.rows / 2), p.head_dim_v // 8
    tile_blocks = math.ceil(p.tile_tokens / 64)
    chunk, ws_blocks = p.chunk_tokens, p.ws_bytes // 32
    whole = p.key_step == chunk  # a chunk is one product: its columns come in one load
    head_elements = chunk * max(p.head_dim, p.head_dim_v) if p.tile_heads > 1 else 0
    repeats = {
        "vmuls, vexp of scores": half * tile_blocks,
        "rows of a tile": half,
        "blocks of parts": math.ceil(p.merge_rows / 8),
        "load_cbuf_to_cb of K": p.key_step // 16 * (p.head_dim // 16 if whole else 1),
        "load_cbuf_to_cb_transpose of V": p.head_dim_v // 16,
        "load_cbuf_to_ca of Q": p.head_dim // 16,
        "load_cbuf_to_ca of P": p.value_step // 16,
        "vector_dup of results": math.ceil(min(desc.heads, 32) * p.head_dim_v / 128),
    }
    strides = {"rows of scores": tile_blocks * 8, "rows of sums": blocks, "rows of a part": half}
    for name, value in (repeats | strides).items():
        assert 0 < value <= 255, f"{name}: {value}"
    limits = {
        "nd2nz nValue": (chunk, 16384),
        "nd2nz dValue": (p.tile_heads * max(p.head_dim, p.head_dim_v), 65535),
        "nd2nz dstNzC0Stride": (chunk, 16384),
        "nd2nz dstNzMatrixStride": (head_elements, 65535),
        "create_cbuf_matrix blocks": (max(p.tile_heads * p.head_dim // 16, chunk), 32767),
        "mad m, k, n": (max(64, p.key_step, p.value_step, p.head_dim, p.head_dim_v), 4095),
        "fixpipe NSize": (max(p.key_step, p.tile_heads * p.head_dim_v), 4095),
        "copy_gm_to_cbuf nBurst": (p.tile_tokens // 16, 4095),
        "load_scores gap": (p.tile_tokens // 8, 65535),
        "load_output gap": ((p.tile_heads - 1) * p.head_dim_v // 8, 65535),
        "store_partial lenBurst": (half * (blocks + 2), 65535),
        "merge lenBurst": (half * blocks, ws_blocks),  # the gap is not negative
        "merge gap": (ws_blocks, 65535),
    }
    for name, (value, most) in limits.items():
        assert 0 <= value <= most, f"{name}: {value} of {most}"


def test_any_shape_has_a_plan_that_fits(make_desc):
    rng = random.Random(0)
    for _ in range(2000):
        desc = random_desc(rng, make_desc)
        try:
            the_plan = plan(desc)
            check_sizes(desc, the_plan)
            check_memory(desc, the_plan)
            check_fields(desc, the_plan)
        except (AssertionError, ValueError) as error:
            pytest.fail(f"{error}\n{desc}")


def test_workspace_depends_on_clusters_and_head_dim_v_alone(make_desc):
    rng = random.Random(1)
    sizes = {}
    for _ in range(300):
        desc = random_desc(rng, make_desc)
        assert sizes.setdefault(desc.head_dim_v, plan(desc).ws_bytes) == plan(desc).ws_bytes
    assert len(sizes) == 16


@pytest.mark.parametrize(
    "shape",
    [
        {"heads": 32, "kv_heads": 8, "head_dim": 128},
        {"batch": 256, "heads": 16, "kv_heads": 1, "max_blocks": 64},  # 8192 tokens
    ],
)
def test_workspace_is_small(shape, make_desc):
    assert 24 * plan(make_desc(**shape)).ws_bytes <= 16 << 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((24, 24), "head_dim_v to be a multiple of 16 up to 256, got 24"),
        ((-16, 24), "head_dim_v to be a multiple of 16 up to 256, got -16"),
        ((64.0, 24), "head_dim_v to be a multiple of 16 up to 256, got 64.0"),
        ((64, 0), "clusters to be 1 to 32, got 0"),
        ((64, "24"), "clusters to be 1 to 32, got '24'"),
    ],
)
def test_workspace_of_no_decode_is_refused(arguments, message):
    with pytest.raises(ValueError) as error:
        plan_module.workspace_bytes(*arguments)
    assert str(error.value) == f"pa_hp.tiling: expected {message}"


# ---- A function of the desc ---------------------------------------------------------------------


def test_pure(make_desc):
    shapes = [{}, {"batch": 1}, {"kv_heads": 1, "max_blocks": 4096}, {"block_size": 16}]
    before = [plan(make_desc(**shape)) for shape in shapes]
    plan.cache_clear()
    after = [plan(make_desc(**shape)) for shape in reversed(shapes)]
    assert after == before[::-1]
    assert len(set(before)) == len(shapes)


def test_strides_and_scale_are_passed_on_and_change_no_tiles(make_desc):
    strides = {"query_strides": (7, 5), "key_strides": (4, 3, 2), "value_strides": (9, 8, 6)}
    others = {
        "block_table_stride": 11,
        "out_strides": (13000, 1200),
        "scale": 0.25,
        "num_blocks": 3,
    }
    changed = plan(make_desc(**strides, **others))
    names = [f.name for f in fields(DecodePlan)][: plan_module.STRIDES]
    values = [getattr(changed, name) for name in names]
    assert values == [7, 5, 4, 3, 2, 9, 8, 6, 11, 13000, 1200]
    assert (changed.scale, changed.num_blocks) == (0.25, 3)
    same = {name: getattr(changed, name) for name in [*names, "scale", "num_blocks"]}
    assert replace(plan(make_desc()), **same) == changed


def test_the_cheapest_candidate_is_taken(make_desc):
    for shape in ({}, {"batch": 1, "kv_heads": 4}, {"head_dim": 256, "head_dim_v": 64}):
        desc = make_desc(**shape)
        the_plan, tiles = plan(desc), candidates(desc)
        each = [tiles[i] for i in range(len(tiles.tile_heads))]
        costs = {one: float(cost(desc, one)) for one in each}
        chosen = plan_module.Tiles(the_plan.tile_heads, the_plan.chunk_tokens, the_plan.tile_tokens)
        assert costs[chosen] == min(costs.values())
        assert cost(desc, tiles).tolist() == pytest.approx(list(costs.values()), rel=1e-12)


def test_a_buffer_more_than_the_chip_has_is_no_candidate(make_desc, monkeypatch):
    desc = make_desc()
    before = candidates(desc)
    for memory, size in (("L1", 300 << 10), ("UB", 100 << 10), ("L0C", 64 << 10)):
        plan_module._candidates.cache_clear()
        with monkeypatch.context() as change:
            change.setattr(plan_module, memory, size)
            fewer = candidates(desc)
            assert 0 < len(fewer.tile_heads) < len(before.tile_heads)
            for i in range(len(fewer.tile_heads)):
                used = plan_module._memories(desc, fewer[i])[memory][1].values()
                assert sum(-(-n // 64) * 64 for n in used) <= size
    plan_module._candidates.cache_clear()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float32"}, "dtype to be float16 or bfloat16, got 'float32'"),
        ({"head_dim": 100}, "head_dim to be a multiple of 16 up to 256, got 100"),
        ({"head_dim_v": 272}, "head_dim_v to be a multiple of 16 up to 256, got 272"),
        ({"block_size": 24}, "block_size to be a multiple of 16 up to 512, got 24"),
        ({"block_size": 0}, "block_size to be a multiple of 16 up to 512, got 0"),
        ({"heads": 65, "kv_heads": 1}, "heads to be 1 to 64 times kv_heads, 1, got 65"),
        ({"heads": 33, "kv_heads": 8}, "heads to be 1 to 64 times kv_heads, 8, got 33"),
        ({"heads": 0}, "heads to be 1 or more, and less than 2^31, got 0"),
        ({"kv_heads": 0}, "kv_heads to be 1 or more, and less than 2^31, got 0"),
        ({"batch": -1}, "batch to be 0 or more, and less than 2^31, got -1"),
        (
            {"max_blocks": -1, "num_blocks": 1},
            "max_blocks to be 0 or more, and less than 2^31, got -1",
        ),
        ({"num_blocks": 2**31}, "num_blocks to be 0 or more, and less than 2^31, got 2147483648"),
        ({"key_strides": (1, 2)}, "key_strides to be 3 strides, got (1, 2)"),
        ({"out_strides": None}, "out_strides to be 2 strides, got None"),
        ({"scale": float("nan")}, "scale to be finite in float32 times log2(e), got nan"),
        ({"scale": 3e38}, "scale to be finite in float32 times log2(e), got 3e+38"),
        ({"clusters": 33}, "clusters to be 1 to 32, got 33"),
        (
            {"out_strides": (0, 16)},
            "out_strides[1] to be at least head_dim_v, and less than 2^31, got 16",
        ),
    ],
)
def test_what_the_kernel_does_not_take_is_refused(change, message, make_desc):
    with pytest.raises(ValueError) as error:
        plan(make_desc(**change))
    assert str(error.value) == f"pa_hp.tiling: expected {message}"
