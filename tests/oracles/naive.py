"""The formulas of the method, one loop per sum, in float64 on plain lists: oracles for the vectorised code.

Nothing here is batched, padded or fast. Functions take nested lists (`tensor.double().tolist()`); an example is its real entries only.
"""

import math

Vector = list[float]


# Eviction: one example, layer and head.


def cosine_similarity(a: Vector, b: Vector) -> float:
    """0 if either vector is zero."""
    norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 0.0


def importance(attention: Vector) -> Vector:
    """I_i, sum 1; all-zero attention gives 1 / C."""
    total = sum(attention)
    return [x / total if total > 0 else 1 / len(attention) for x in attention]


def redundancy(keys: list[Vector]) -> Vector:
    """R_i = softmax_i( -(1/C) sum_{j != i} cos(k_i, k_j) ), by the C x C matrix."""
    count = len(keys)
    logits = [-sum(cosine_similarity(keys[i], keys[j]) for j in range(count) if j != i) / count for i in range(count)]
    total = sum(math.exp(x) for x in logits)
    return [math.exp(x) / total for x in logits]


def rkv(attention: Vector, keys: list[Vector], lam: float) -> Vector:
    """S_i = lambda I_i + (1 - lambda) R_i."""
    return [lam * i + (1 - lam) * r for i, r in zip(importance(attention), redundancy(keys), strict=True)]


def window_importance(queries: list[list[Vector]], keys: list[Vector], scale: float) -> Vector:
    """R-KV's own code: [window][G][D] queries of one KV head over its candidate keys; each by the group's largest logit, then the mean."""
    rows = []
    for group in queries:
        logits = [max(scale * sum(x * y for x, y in zip(query, key, strict=True)) for query in group) for key in keys]
        total = sum(math.exp(x) for x in logits)
        rows.append([math.exp(x) / total for x in logits])
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def original_redundancy(keys: list[Vector]) -> Vector:
    """R-KV's own code: in each row the last neighbour above 0.5 (else the first entry) is set to 0; softmax of the columns' means."""
    count = len(keys)
    rows = []
    for i in range(count):
        row = [0.0 if i == j else cosine_similarity(keys[i], keys[j]) for j in range(count)]
        row[max((j for j in range(count) if row[j] > 0.5), default=0)] = 0.0
        rows.append(row)
    means = [sum(column) / count for column in zip(*rows, strict=True)]
    total = sum(math.exp(x) for x in means)
    return [math.exp(x) / total for x in means]


def rkv_original(importance: Vector, keys: list[Vector]) -> Vector:
    """0.07 importance, the largest of 7 neighbours, - 0.93 redundancy; 1 for the last 8."""
    count = len(keys)
    pooled = [max(importance[max(0, i - 3) : min(i + 4, count - 8)]) for i in range(count - 8)]
    return [0.07 * x - 0.93 * y for x, y in zip(pooled, original_redundancy(keys), strict=False)] + [1.0] * min(count, 8)


def uniform(count: int, num_slots: int) -> Vector:
    """1 at floor((m + 1/2) C / M)."""
    chosen = {math.floor((2 * m + 1) * count / (2 * num_slots)) for m in range(num_slots)}
    return [float(i in chosen) for i in range(count)]


def mix32(x: int) -> int:
    """The finaliser behind `random`, on Python integers."""
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) % 2**32
    x = ((x ^ (x >> 15)) * 0x735A2D97) % 2**32
    return x ^ (x >> 15)


def random(count: int, seed: int, example_seed: int, layer: int, head: int) -> Vector:
    """The top 24 bits of a hash, as a fraction."""
    scores = []
    for position in range(count):
        state = 1
        for word in (seed % 2**32, example_seed % 2**32, (example_seed >> 32) % 2**32, layer, head, position):
            state = mix32(state ^ word)
        scores.append((state // 256) / 2**24)
    return scores


def score(
    name: str,
    attention: Vector,
    keys: list[Vector],
    num_slots: int,
    lam: float,
    seed: int = 0,
    example_seed: int = 0,
    layer: int = 0,
    head: int = 0,
) -> Vector:
    """Scores of the C real entries by the eviction called `name`."""
    count = len(keys)
    if name == "crop":
        return [-float(i) for i in range(count)]
    if name == "uniform":
        return uniform(count, num_slots)
    if name == "random":
        return random(count, seed, example_seed, layer, head)
    if name == "rkv_original":
        return rkv_original(attention, keys)
    return rkv(attention, keys, {"rkv": lam, "attention": 1.0, "cosine": 0.0}[name])


def shared(scores: list[list[Vector]], share: str, layer: int) -> Vector:
    """The scores, [L][H][C], that every head of a layer chooses by where they share a choice."""
    rows = [row for index, heads in enumerate(scores) if share == "all" or index == layer for row in heads]
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def select(scores: Vector, num_slots: int) -> list[int]:
    """Positions of the min(C, M) best, the earlier of equals first, in time order."""
    best_first = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return sorted(best_first[:num_slots])


# Losses.


def distance(name: str, residual: float) -> float:
    """smooth_l1 (beta 1), l1 or mse of one residual."""
    if name == "mse":
        return residual**2
    if name == "smooth_l1" and abs(residual) < 1:
        return residual**2 / 2
    return abs(residual) - (0.5 if name == "smooth_l1" else 0.0)


def deviation(values: Vector) -> float:
    """Biased standard deviation, at least 1e-6."""
    mean = sum(values) / len(values)
    return max(math.sqrt(sum((x - mean) ** 2 for x in values) / len(values)), 1e-6)


def token_cross_entropy(logits: list[Vector], labels: list[int], example: list[int], num_examples: int) -> Vector:
    """Mean negative log-likelihood over each example's rows, 0 without rows."""
    result = []
    for b in range(num_examples):
        losses = [
            math.log(sum(math.exp(x) for x in row)) - row[label]
            for row, label, owner in zip(logits, labels, example, strict=True)
            if owner == b
        ]
        result.append(sum(losses) / len(losses) if losses else 0.0)
    return result


def codi_loss(teacher: list[Vector], student: list[Vector], name: str, layerwise_std: bool) -> float:
    """One example, [L][E]: mean over layers of mean over E of dist, over the teacher's deviation."""
    everything = deviation([x for layer in teacher for x in layer])
    terms = []
    for t, s in zip(teacher, student, strict=True):
        mean_distance = sum(distance(name, x - y) for x, y in zip(t, s, strict=True)) / len(t)
        terms.append(mean_distance / (deviation(t) if layerwise_std else everything))
    return sum(terms) / len(terms)


def _kv_part(teacher: list[list[list[Vector]]], student: list[list[list[Vector]]], name: str, layerwise_std: bool) -> float:
    distances = []
    for t_layer, s_layer in zip(teacher, student, strict=True):
        t_flat = [x for head in t_layer for slot in head for x in slot]
        s_flat = [x for head in s_layer for slot in head for x in slot]
        if not t_flat:
            return 0.0
        scale = deviation(t_flat) if layerwise_std else 1.0
        distances += [distance(name, (x - y) / scale) for x, y in zip(t_flat, s_flat, strict=True)]
    return sum(distances) / len(distances)


def kv_loss(
    teacher_keys: list[list[list[Vector]]],
    teacher_values: list[list[list[Vector]]],
    student_keys: list[list[list[Vector]]],
    student_values: list[list[list[Vector]]],
    name: str,
    layerwise_std: bool,
    parts: str = "both",
) -> float:
    """One example, [L][H][filled slots][D]: half the keys' mean distance plus half the values'."""
    keys = _kv_part(teacher_keys, student_keys, name, layerwise_std) if parts != "values" else 0.0
    values = _kv_part(teacher_values, student_values, name, layerwise_std) if parts != "keys" else 0.0
    return (keys + values) / 2


def total(student_ce: float, teacher_ce: float, codi: float, kv: float, alpha1: float, alpha2: float) -> float:
    """CE_student + CE_teacher + alpha1 L_CODI + alpha2 L_KV."""
    return student_ce + teacher_ce + alpha1 * codi + alpha2 * kv
