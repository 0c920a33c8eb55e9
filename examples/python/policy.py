"""showback: what each tenant's requests cost, whatever became of them.

The shell around prices.py that speaks to the host. `wit_world` is what componentize-py makes of
world.wit; `componentize-py -d wit -w showback bindings .` writes it out, for editors.
"""

import traceback

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.lifecycle import Descriptor, Metric, MetricKind
from wit_world.imports import log, metrics
from wit_world.imports.types import EventSet, Guarding_Off, Watch

import prices

METRICS = [
    Metric(
        "spend_total",
        MetricKind.COUNTER,
        "What requests cost, in the currency of the settings.",
        ["tenant", "model"],
    ),
    Metric(
        "unpriced_tokens_total",
        MetricKind.COUNTER,
        "Tokens of models that have no price.",
        ["model"],
    ),
]
SPEND, UNPRICED = range(len(METRICS))

per_million = {}


class Lifecycle(exports.Lifecycle):
    def init(self, config):
        global per_million
        try:
            per_million = prices.read(config)
        except ValueError as error:
            raise Err(str(error))
        return Descriptor(
            name="showback",
            version="0.1.0",
            reasons=[],
            metrics=METRICS,
            needs=[],
            watch=Watch(events=EventSet(0), stalled_after=None, guarding=Guarding_Off()),
            settings_schema="",
        )


class Account(exports.Account):
    def account(self, request, summary):
        try:
            count(request, summary.usage)
        except Exception:
            # What is raised here is a trap without a message: say it before.
            log.write(log.Level.ERROR, traceback.format_exc())
            raise


def count(request, usage):
    spent = prices.cost(
        per_million,
        request.model,
        usage.prompt_tokens,
        usage.cached_tokens,
        usage.generated_tokens,
    )
    if spent is None:
        metrics.add(UNPRICED, float(usage.prompt_tokens + usage.generated_tokens), [request.model])
    else:
        metrics.add(SPEND, spent, [request.tenant or "nobody", request.model])
