"""Lanes: what waits, what serves, what their GPUs and caches do, how they start, and which needs somebody."""

from darktree_dashboards.panels import Query, Section, lines, number, quantiles, rows

LANE = 'lane=~"$lane"'
ENGINE = 'darktree_dev_lane=~"$lane"'  # the pod's label, as the operator's PodMonitor has it
RATE = "[$__rate_interval]"


def sections() -> list[Section]:
    """Return the dashboard's rows."""
    return [_now(), _load(), _engines(), _cluster()]


def _now() -> Section:
    return Section(
        "Now",
        [
            number(
                "Ready",
                "Lanes whose newest revision serves.",
                f'sum(darktree_lane_condition{{type="Ready", {LANE}}})',
            ),
            number(
                "Need somebody",
                "Lanes that cannot go on by themselves: DarktreeLaneStalled.",
                f'sum(darktree_lane_condition{{type="Stalled", {LANE}}})',
                bad=1,
            ),
            number(
                "Wait for a GPU",
                "Lanes with pods that find no GPU.",
                f'count(darktree_lane_condition{{type="GPUAvailable", {LANE}}} == 0) or vector(0)',
                bad=1,
            ),
            number(
                "GPUs in use",
                "That lanes' pods have.",
                f'sum(darktree_lane_gpus{{state="allocated", {LANE}}})',
            ),
            number(
                "Waiting",
                "Requests that wait for an engine or a place.",
                f"sum(darktree_lane_queued{{{LANE}}})",
                warn=1,
            ),
            number(
                "Fullest cache",
                "The share of a KV cache that is used, of the engine with the most.",
                f"max(vllm:kv_cache_usage_perc{{{ENGINE}}})",
                "percentunit",
                warn=0.8,
                bad=0.95,
            ),
        ],
    )


def _load() -> Section:
    return Section(
        "Load",
        [
            lines(
                "In flight",
                "Requests being served, by lane.",
                Query(f"sum by (lane) (darktree_lane_in_flight{{{LANE}}})", "{{lane}}"),
                stacked=True,
            ),
            lines(
                "Waiting",
                "Requests that wait for an engine or a place, and those just sent away.",
                Query(f"sum by (lane) (darktree_lane_queued{{{LANE}}})", "{{lane}}"),
                stacked=True,
            ),
            lines(
                "Time in the queue",
                "Of those that had to wait, served in the end or not; and how long the first has waited.",
                *quantiles("darktree_lane_queue_seconds", where=LANE, of=(0.5, 0.95)),
                Query(
                    f"max by (lane) (darktree_lane_oldest_queued_seconds{{{LANE}}})",
                    "{{lane}}, oldest now",
                ),
                unit="s",
            ),
            lines(
                "Tokens",
                "Tokens a second that gateways metered, by lane and kind.",
                Query(
                    f"sum by (lane, kind) (rate(darktree_lane_metered_tokens_total{{{LANE}}}{RATE}))",
                    "{{lane}} {{kind}}",
                ),
                stacked=True,
            ),
            lines(
                "Engines",
                "As gateways see them: serving, ejected, or probed.",
                Query(f"max by (lane, state) (darktree_lane_engines{{{LANE}}})", "{{lane}} {{state}}"),
            ),
            lines(
                "Sent away or elsewhere",
                "Requests a second: refused by a full queue, or of a dedicated lane and served by the shared one.",
                Query(
                    f"sum by (lane, reason) (rate(darktree_lane_queue_refused_total{{{LANE}}}{RATE})) or vector(0)",
                    "{{lane}} {{reason}}",
                ),
                Query(
                    f"sum by (lane) (rate(darktree_lane_spilled_total{{{LANE}}}{RATE})) or vector(0)",
                    "{{lane}} spilled",
                ),
            ),
        ],
    )


def _engines() -> Section:
    return Section(
        "Engines, as they say themselves",
        [
            lines(
                "KV cache",
                "The share in use. Near 1, an engine preempts requests and begins them anew.",
                Query(
                    f"max by (darktree_dev_lane) (vllm:kv_cache_usage_perc{{{ENGINE}}})",
                    "{{darktree_dev_lane}}",
                ),
                unit="percentunit",
                limit=0.95,
            ),
            lines(
                "Running and waiting",
                "Requests inside the engines.",
                Query(
                    f"sum by (darktree_dev_lane) (vllm:num_requests_running{{{ENGINE}}})",
                    "{{darktree_dev_lane}} running",
                ),
                Query(
                    f"sum by (darktree_dev_lane) (vllm:num_requests_waiting{{{ENGINE}}})",
                    "{{darktree_dev_lane}} waiting",
                ),
            ),
            lines(
                "Generated",
                "Completion tokens a second.",
                Query(
                    f"sum by (darktree_dev_lane) (rate(vllm:generation_tokens_total{{{ENGINE}}}{RATE}))",
                    "{{darktree_dev_lane}}",
                ),
                stacked=True,
            ),
            lines(
                "First token, p95",
                "Inside the engine: without the gateway and its queue.",
                *quantiles("vllm:time_to_first_token_seconds", "darktree_dev_lane", ENGINE, of=(0.95,)),
                unit="s",
            ),
            lines(
                "Between tokens, p95",
                "Inside the engine.",
                *quantiles("vllm:inter_token_latency_seconds", "darktree_dev_lane", ENGINE, of=(0.95,)),
                unit="s",
            ),
            lines(
                "Finished",
                "Answers a second by how they ended.",
                Query(
                    f"sum by (finished_reason) (rate(vllm:request_success_total{{{ENGINE}}}{RATE}))",
                    "{{finished_reason}}",
                ),
                stacked=True,
            ),
        ],
    )


def _cluster() -> Section:
    return Section(
        "In the cluster, as the operator says",
        [
            lines(
                "GPUs",
                "What lanes ask for and what their pods have.",
                Query(f"sum by (state) (darktree_lane_gpus{{{LANE}}})", "{{state}}"),
            ),
            lines(
                "Replicas",
                "Desired and available.",
                Query(f"sum by (lane, state) (darktree_lane_replicas{{{LANE}}})", "{{lane}} {{state}}"),
            ),
            lines(
                "Cold start",
                "Of each lane's newest engine: finding a node, pulling the image, loading the model.",
                Query(
                    f'max by (lane, phase) (darktree_lane_cold_start_seconds{{phase!="total", {LANE}}})',
                    "{{lane}} {{phase}}",
                ),
                unit="s",
                stacked=True,
            ),
            rows(
                "Conditions that are not as expected",
                "Lanes that are not ready, degraded, stalled or without a GPU, and why.",
                Query(
                    f'darktree_lane_condition{{type=~"Ready|GPUAvailable|Available", {LANE}}} == 0 or darktree_lane_condition{{type=~"Stalled|Degraded", {LANE}}} == 1'
                ),
                columns=["namespace", "lane", "type", "reason"],
            ),
        ],
    )
