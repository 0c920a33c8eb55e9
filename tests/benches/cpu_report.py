"""What cpu.py measured, as lines, tables and pictures: medians over the rounds."""

import json
import re
import statistics

ORDER = ["interlock", "llama.cpp", "mlx_lm.server"]
# Okabe and Ito's, which everyone can tell apart; as in `interlock bench`.
COLORS = {"interlock": "#0072b2", "llama.cpp": "#d55e00", "mlx_lm.server": "#009e73"}
FLOOR = "#5a5a5a"
# What was asked for: against llama.cpp, and against mlx_lm.server in every cell.
DECODE, AGGREGATE, FIRST_TOKEN, EVERY_CELL = 2, 3, 0.4, 5
READY_S, BESIDE_WEIGHTS_MB = 2, 100
# Of all cores, what others may take before a comparison means nothing: servers whose threads wait
# for each other at every step, llama.cpp's most of all, lose far more than that share.
QUIET_PERCENT = 10


def in_a_line(figures):
    where = {"batch": "at once", "prompt": "tokens of prompt", "host": "streams"}
    text = f"{figures['server']}, {figures['at']} {where[figures['purpose']]}: "
    if "failed" in figures:
        return text + f"FAILED: {figures['failed']}"
    if figures["purpose"] == "batch":
        text += f"{figures['tokens_per_s']:.1f} tokens/s, p99 {figures['inter_token_ms_p99']:.0f} ms"
    elif figures["purpose"] == "prompt":
        text += f"first token after {figures['first_token_ms_most']:.0f} ms"
    else:
        text += f"{figures['host_us']:.0f} µs a token ({figures['server_us']:.0f} in all)"
    busy = f"load {figures['load']:.1f}, others {figures['others_percent']:.0f} %"
    return f"{text} ({busy}, stolen {figures['steal_percent']:.0f} %)"


class Medians:
    """The rounds' medians, by place: `at` of the server's cells of a purpose."""

    def __init__(self, results):
        self.results = results
        self.cells = results["cells"] + results["host"]
        known = [cell["server"] for cell in self.cells + results["starts"]]
        self.servers = [name for name in ORDER if name in known]
        gb = [b["gb_per_s"] for b in results["bandwidth"] if b["buffer_mb"] > 500]
        self.gb_per_s = max(gb, default=None)
        self.packed = results["about"]["packed_bytes"]
        # Reading the packed weights once.
        self.floor_s = self.packed / (self.gb_per_s * 1e9) if gb else None

    def places(self, purpose):
        return sorted({cell["at"] for cell in self.cells if cell["purpose"] == purpose})

    def values(self, server, purpose, at, figure):
        found = [
            cell.get(figure)
            for cell in self.cells
            if (cell["server"], cell["purpose"], cell["at"]) == (server, purpose, at)
        ]
        return [value for value in found if value is not None]

    def __call__(self, server, purpose, at, figure):
        values = self.values(server, purpose, at, figure)
        return statistics.median(values) if values else None

    def failure(self, server, purpose, at):
        cells = [c for c in self.cells if (c["server"], c["purpose"]) == (server, purpose)]
        failed = [c["failed"] for c in cells if c["at"] in (at, 0) and "failed" in c]
        return failed[0] if failed else None

    def start(self, server, figure):
        """Started for single prompts: with 32 slots llama.cpp clears 32 contexts first."""
        starts = [s for s in self.results["starts"] if s["server"] == server and figure in s]
        alone = [s[figure] for s in starts if s["purpose"] == "prompt"]
        values = alone or [s[figure] for s in starts]
        return statistics.median(values) if values else None

    def loud(self):
        """Beside each server, what others took of the cores: the ones above QUIET_PERCENT."""
        beside = {
            name: statistics.median(
                [c["others_percent"] for c in self.results["cells"]
                 if c["server"] == name and "others_percent" in c] or [0]
            )
            for name in self.servers
        }
        return {name: share for name, share in beside.items() if share > QUIET_PERCENT}

    def best_peer(self, purpose, at, figure, pick):
        peers = [self(name, purpose, at, figure) for name in self.servers if name != "interlock"]
        peers = [value for value in peers if value is not None]
        return pick(peers) if peers else None


def number(value):
    if value is None:
        return "-"
    for digits, least in [(0, 100), (1, 10), (2, 0)]:
        if abs(value) >= least:
            return f"{value:.{digits}f}"


def ratio(ours, theirs):
    return ours / theirs if ours is not None and theirs else None


def verdict(m, reached, timed=True):
    if reached is not None and timed and m.loud():
        return "not quiet: " + ("reached" if reached else "missed")
    return {None: "not measured", True: "**reached**", False: "missed"}[reached]


def aligned(rows):
    """A table whose columns line up as text, too."""
    widths = [max(len(str(row[n])) for row in rows) for n in range(len(rows[0]))]
    line = lambda row: "| " + " | ".join(f"{c!s:{w}}" for c, w in zip(row, widths)) + " |"
    return "\n".join([line(rows[0]), line(["-" * w for w in widths]), *map(line, rows[1:])])


def tables(results):
    m = Medians(results)
    parts = [head(results, m), targets(m)]
    for title, table in [
        ("Against batch, tokens/s", sweep(m, "batch", "at once", "tokens_per_s", max)),
        (
            "Against batch, between two tokens, p99, ms",
            sweep(m, "batch", "at once", "inter_token_ms_p99", min),
        ),
        (
            "Against batch, CPU of the server, ms a token",
            sweep(m, "batch", "at once", "cpu_ms_per_token", min),
        ),
        (
            "Against the prompt's length, first token, ms",
            sweep(m, "prompt", "tokens", "first_token_ms_most", min),
        ),
        (
            "Against streams, CPU beside the model's own, µs a token",
            sweep(m, "host", "streams", "host_us", min),
        ),
    ]:
        if table:
            parts += [title + "\n\n" + table]
    parts += [starts(m), failures(m), misses(m)]
    return "\n\n".join(part for part in parts if part)


def head(results, m):
    about = results["about"]
    cells = m.cells
    lines = [
        f"{about['at']}, {results.get('took_s', 0) / 60:.0f} minutes; {about['machine']}, "
        f"{about['threads']} threads each; {', '.join(about['instructions'])}",
        f"Load {about['load_before']:.1f} before, {about.get('load_after', 0):.1f} after, its own "
        f"included. Others took {shown(cells, 'others_percent')} of the cores beside a cell, the "
        f"hypervisor {shown(cells, 'steal_percent')}.",
        f"{about['model']}: {about['packed_bytes'] / 1e6:.1f} MB packed, {about['tokens']} tokens "
        "an answer.",
    ]
    if m.loud():
        beside = ", ".join(f"{share:.0f} % beside {name}" for name, share in m.loud().items())
        lines.append(f"THE MACHINE WAS NOT QUIET ({beside}): these ratios prove nothing.")
    for name in m.servers:
        said = "; ".join(about["arithmetic"].get(name, [])) or "its log names no instructions"
        lines.append(f"{name}: {about['versions'].get(name)}. {said}")
    if m.floor_s:
        by = {b["buffer_mb"] for b in results["bandwidth"]}
        best = {
            mb: max(b["gb_per_s"] for b in results["bandwidth"] if b["buffer_mb"] == mb) for mb in by
        }
        read = ", ".join(f"{best[mb]:.1f} GB/s of {mb} MB" for mb in sorted(by))
        lines.append(
            f"Reading, the best of the rounds: {read}. The floor: the packed weights from memory "
            f"once in {1e3 * m.floor_s:.1f} ms, {1 / m.floor_s:.0f} passes/s."
        )
    return "\n".join(lines)


def shown(cells, figure):
    values = [cell[figure] for cell in cells if figure in cell]
    if not values:
        return "an unknown share"
    return f"{statistics.median(values):.0f} % (median; at most {max(values):.0f} %)"


def targets(m):
    """The numbers that were asked for."""
    rows = [["", *m.servers, "floor", "asked for", "measured", ""]]

    def row(what, figures, floor, asked, measured, reached, timed=True):
        shown = [number(figure) for figure in figures]
        rows.append([what, *shown, number(floor), asked, measured, verdict(m, reached, timed)])

    def against(what, purpose, at, figure, floor, wanted, more):
        values = {name: m(name, purpose, at, figure) for name in m.servers}
        found = ratio(values.get("interlock"), values.get("llama.cpp"))
        reached = None if found is None else (found >= wanted) if more else (found <= wanted)
        asked = f"{'at least' if more else 'at most'} {wanted} of llama.cpp's"
        row(what, values.values(), floor, asked, number(found), reached)

    floor = m.floor_s
    per_s = 1 / floor if floor else None
    against(
        "decode, 1 client, tokens/s", "batch", 1, "decode_tokens_per_s", per_s, DECODE, True
    )
    against(
        "all tokens, 8 clients, tokens/s", "batch", 8, "tokens_per_s",
        per_s and 8 * per_s, AGGREGATE, True,
    )
    against(
        "first token, prompt of 1,500, ms", "prompt", 1500, "first_token_ms_most",
        floor and 1e3 * floor, FIRST_TOKEN, False,
    )
    memory = {name: m.start(name, "rss_mb") for name in m.servers}
    limit = m.packed / 1e6 + BESIDE_WEIGHTS_MB
    ours = memory.get("interlock")
    row(
        "memory at ready, MB", memory.values(), m.packed / 1e6, f"at most {limit:.0f}",
        number(ours), None if ours is None else ours <= limit, timed=False,
    )
    ready = {name: m.start(name, "ready_s") for name in m.servers}
    ours = ready.get("interlock")
    row(
        "ready after, s", ready.values(), None, f"at most {READY_S}", number(ours),
        None if ours is None else ours <= READY_S,
    )
    cells = [factor for _, factor in factors(m)]
    rows.append([
        "every cell, against mlx_lm.server", *["" for _ in m.servers], "-",
        f"at least {EVERY_CELL}", f"{number(min(cells, default=None))} to "
        f"{number(max(cells, default=None))}",
        verdict(m, min(cells) >= EVERY_CELL if cells else None),
    ])
    return aligned(rows)


def factors(m):
    """How many times as fast as mlx_lm.server, cell by cell."""
    for purpose, figure, more in [
        ("batch", "tokens_per_s", True),
        ("prompt", "first_token_ms_most", False),
    ]:
        for at in m.places(purpose):
            ours = m("interlock", purpose, at, figure)
            theirs = m("mlx_lm.server", purpose, at, figure)
            found = ratio(ours, theirs) if more else ratio(theirs, ours)
            if found is not None:
                yield f"{purpose} {at}", found


def sweep(m, purpose, name, figure, best):
    places = m.places(purpose)
    if not places:
        return None
    rows = [[name, *m.servers, "times the best peer's", "times mlx_lm's"]]
    if purpose != "host":
        rows[0].append("floor")
    for at in places:
        if at == 0:
            continue
        ours = m("interlock", purpose, at, figure)
        peers = m.best_peer(purpose, at, figure, best)
        row = [length(m, at) if purpose == "prompt" else at]
        row += [cell(m, server, purpose, at, figure) for server in m.servers]
        row += [number(ratio(ours, peers))]
        row += [number(ratio(ours, m("mlx_lm.server", purpose, at, figure)))]
        if purpose != "host":
            row += [number(floor(m, figure, at))]
        rows.append(row)
    return aligned(rows)


def floor(m, figure, at):
    """What reading the packed weights once a pass allows."""
    if not m.floor_s or figure == "cpu_ms_per_token":
        return None
    return at / m.floor_s if figure == "tokens_per_s" else 1e3 * m.floor_s


def length(m, at):
    """A prompt's length as it was, where a server counted."""
    for server in m.servers:
        counted = m(server, "prompt", at, "prompt_tokens")
        if counted:
            return int(counted)
    return at


def cell(m, server, purpose, at, figure):
    values = m.values(server, purpose, at, figure)
    if not values:
        return "failed" if m.failure(server, purpose, at) else "-"
    middle = number(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({number(min(values))} to {number(max(values))})"


def starts(m):
    rows = [["", "ready after, s", "first token after, s", "memory at ready, MB"]]
    rows[0] += ["of it no file's", "after the first token"]
    for name in m.servers:
        figures = ["ready_s", "first_answer_s", "rss_mb", "anonymous_mb", "rss_then_mb"]
        rows.append([name, *[number(m.start(name, figure)) for figure in figures]])
    return aligned(rows)


def failures(m):
    cells = [c for c in m.cells + m.results["starts"] if "failed" in c]
    lines = [f"- {c['server']}, {c['purpose']} {c.get('at', 'start')}: {c['failed']}" for c in cells]
    lines = list(dict.fromkeys(lines))
    short = {
        name: sum(c.get("short", 0) for c in m.cells if c["server"] == name) for name in m.servers
    }
    for name, count in short.items():
        if count:
            lines.append(f"- {name}: {count} answers were shorter than asked for")
    return "\n".join(lines)


def misses(m):
    below = [f"{where}: {number(factor)}" for where, factor in factors(m) if factor < EVERY_CELL]
    if not below:
        return None
    return f"Cells below {EVERY_CELL} times mlx_lm.server's: " + ", ".join(below)


def write(results, out):
    text = json.dumps(results, indent=1)
    # What failed may name files: of their paths, the end is enough.
    text = re.sub(r"(?<![\w:/.])/(?:[\w.+-]+/)+", ".../", text)
    (out / "cpu.json").write_text(text + "\n")
    m = Medians(results)
    if m.places("batch"):
        picture(m, out / "cpu-batch.svg", [
            ("All tokens per second", "batch", "tokens_per_s", "requests at once", "tokens/s"),
            ("Between two tokens, p99", "batch", "inter_token_ms_p99", "requests at once", "ms"),
        ])
    if m.places("prompt"):
        picture(m, out / "cpu-prompt.svg", [
            ("Time to first token", "prompt", "first_token_ms_most", "tokens of prompt", "ms"),
        ])
    if m.places("host"):
        picture(m, out / "cpu-host.svg", [
            (
                "CPU of the host beyond the model's own", "host", "host_us", "streams",
                "µs a token",
            ),
        ])


def picture(m, file, panels):
    import matplotlib

    matplotlib.use("svg")
    # Text stays text, and the same figures make the same file.
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "interlock", "font.size": 10}
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure, axes = plt.subplots(
        1, len(panels), figsize=(1 + 5.6 * len(panels), 5), squeeze=False, layout="constrained"
    )
    for ax, (title, purpose, what, x_name, unit) in zip(axes[0], panels):
        places = [at for at in m.places(purpose) if at]
        xs = {at: length(m, at) if purpose == "prompt" else at for at in places}
        for server in m.servers:
            values = {at: m.values(server, purpose, at, what) for at in places}
            drawn = [at for at in places if values[at] and statistics.median(values[at]) > 0]
            middle = [statistics.median(values[at]) for at in drawn]
            low = [mid - min(values[at]) for mid, at in zip(middle, drawn)]
            high = [max(values[at]) - mid for mid, at in zip(middle, drawn)]
            # A bar that would reach 0 has no place on a logarithmic axis.
            low = [min(bar, mid * 0.9) for bar, mid in zip(low, middle)]
            ax.errorbar(
                [xs[at] for at in drawn], middle, [low, high], marker="o", capsize=3, label=server,
                color=COLORS[server], linewidth=2.4 if server == "interlock" else 1.6,
            )
        floors = [floor(m, what, at) for at in places] if purpose != "host" else [None]
        if None not in floors:
            ax.plot(
                [xs[at] for at in places], floors, "--", color=FLOOR, linewidth=1.2,
                label="floor: reading the packed weights once a pass",
            )
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xticks([xs[at] for at in places])
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
        ax.tick_params(axis="x", which="minor", bottom=False)
        if purpose == "prompt":
            ax.tick_params(axis="x", rotation=45)
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set(title=title, xlabel=x_name, ylabel=f"{unit}, logarithmic")
        ax.grid(color="#e1e1e1", which="major")
    about = m.results["about"]
    rounds = 1 + max((b["round"] for b in m.results["bandwidth"]), default=0)
    named = dict(zip(*reversed(axes[0][0].get_legend_handles_labels())))
    figure.legend(named.values(), named, loc="outside lower center", ncols=2, fontsize=9)
    figure.suptitle(
        f"{about['model']}\n{about['machine']}, {about['threads']} threads each;"
        f" median, smallest and largest of up to {rounds} rounds",
        fontsize=9,
    )
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
