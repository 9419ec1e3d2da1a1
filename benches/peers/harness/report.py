"""From the figures of all rounds to one table: medians, spread, and ratios to ours.

A ratio is one of medians of the same run, ours divided by the peer's: over 1, ours does more.
"""

import statistics

FIGURES = ["ops_per_s", "p50_us", "p99_us", "p999_us", "cpu_s_per_1k_ops"]


def summary(rounds):
    """Median and spread of each figure that the rounds have."""
    lines = {}
    for figure in FIGURES:
        values = [each[figure] for each in rounds if each.get(figure) is not None]
        if values:
            lines[figure] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return lines


def rows(cases, peers, measured):
    """One row for each case and peer that has figures, in the order of the catalog, with ratios."""
    found = []
    for case in cases:
        taking_part = [peer for peer in peers if measured.get((case.key, peer.name))]
        ours = next((summary(measured[case.key, peer.name]) for peer in taking_part if peer.ours), None)
        for peer in taking_part:
            rounds = measured[case.key, peer.name]
            row = {
                "case": case.key,
                "title": case.title,
                "unit": case.unit,
                "peer": peer.name,
                "ours": peer.ours,
                "payload": case.payload,
                "in_flight": case.inflight,
                "batch": case.batch,
                "conditions": conditions(peer, rounds),
                "rounds": len(rounds),
                **summary(rounds),
            }
            if ours and not peer.ours:
                row["ratios"] = ratios(ours, row)
            found.append(row)
    return found


def conditions(peer, rounds):
    """What stands beside the peer's figures, with what its driver said filled in."""
    facts = {name: value for name, value in rounds[-1].items() if isinstance(value, str)}
    failed = sum(each.get("failed", 0) for each in rounds)
    text = peer.conditions.format_map({"version": "version unknown", "flush_backend": "way unknown", **facts})
    if failed:
        # Not in the rate nor in the latencies: without this, a peer that refuses would look faster than it is.
        reason = next((each["failure"] for each in rounds if each.get("failure")), "its driver does not say why")
        text += f"; {failed:,} operations FAILED and were made anew: {reason}"
    return text


def ratios(ours, peer):
    """How many times as much ours does: in a second, in a CPU-second; and how many times as fast at p50."""
    found = {}
    for name, figure, more_is_better in [
        ("per_second", "ops_per_s", True),
        ("per_cpu_second", "cpu_s_per_1k_ops", False),
        ("p50", "p50_us", False),
    ]:
        if figure in ours and figure in peer:
            a, b = ours[figure]["median"], peer[figure]["median"]
            if not more_is_better:
                a, b = b, a
            if b > 0:
                found[name] = a / b
    return found


def table(found):
    """The rows as Markdown, one block a case."""
    lines = []
    case = None
    for row in found:
        if row["case"] != case:
            case = row["case"]
            lines += ["", f"**{row['title']}**", ""]
            lines.append(
                f"| | {row['unit']}: median (min - max) | p50 / p99 / p99.9 | CPU s per 1000 "
                "| ours / it: per second | per CPU-second | p50 | conditions |"
            )
            lines.append("|---|---:|---:|---:|---:|---:|---:|---|")
        times = row.get("ratios", {})
        cells = [
            row["peer"],
            _spread(row["ops_per_s"]),
            " / ".join(_time(row.get(figure)) for figure in ("p50_us", "p99_us", "p999_us")),
            _plain(row.get("cpu_s_per_1k_ops")),
            *(_ratio(times.get(name), row["ours"]) for name in ("per_second", "per_cpu_second", "p50")),
            row["conditions"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines).strip()


def _count(value):
    return f"{value / 1e6:.1f} M" if value >= 1e7 else f"{value:,.0f}"


def _spread(figure):
    return f"{_count(figure['median'])} ({_count(figure['min'])} - {_count(figure['max'])})"


def _time(figure):
    if figure is None:
        return "-"
    us = figure["median"]
    return f"{us:.0f} µs" if us < 1000 else f"{us / 1000:.2f} ms" if us < 10_000 else f"{us / 1000:.0f} ms"


def _plain(figure):
    return "-" if figure is None else f"{figure['median']:.2g}" if figure["median"] < 0.001 else f"{figure['median']:.4f}"


def _ratio(value, ours):
    if value is None:
        return "1" if ours else "-"
    return f"{value:.1f} x" if value >= 10 else f"{value:.2f} x"
