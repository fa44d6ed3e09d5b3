"""Alarms: a webhook is called when a flow run failed, crashed or drifted, and when a trigger came to nothing.

They are automations on the Prefect server, which keeps the address as a secret. Each call is a POST of JSON:
text (one line, as chat services show it), event, flow_run, state, message, url.
"""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.types import SecretDict

from deployments.settings import check_webhook

WEBHOOK_VARIABLE = "SEGPIPE_WEBHOOK_URL"
BLOCK = "segpipe-alarms"
STOPPED_RUN = "segpipe alarm: run failed, crashed or drifted"
FAILED_ACTION = "segpipe alarm: a trigger came to nothing"
SILENT_RUN = "segpipe alarm: a run that has gone silent is marked as crashed"
HEARTBEAT_SECONDS = 30
# Ten heartbeats: shorter, and a server that was down for two minutes takes living runs for dead.
SILENT_SECONDS = 300

_FLOW_RUNS = {"prefect.resource.id": "prefect.flow-run.*"}
_ENDED = {"Completed", "Failed", "Crashed", "Cancelled", "TimedOut", "Paused", "Suspended"}

# Every value passes through tojson, so that a quote or a line break in a message cannot break the JSON.
_RUN_BODY = """{
  {%- set drifted = event.event == "segpipe.run.drifted" %}
  {%- set state = "Drifted" if drifted else flow_run.state.name %}
  {%- set message = "the scores have drifted: all masks of the run go to review" if drifted
                    else (flow_run.state.message or "") %}
  {%- set url = "UI_URL/runs/flow-run/" ~ flow_run.id %}
  "text": {{ ("segpipe: " ~ flow_run.name ~ ": " ~ state ~ ": " ~ message ~ " " ~ url) | tojson }},
  "event": {{ event.event | tojson }},
  "flow_run": {{ flow_run.name | string | tojson }},
  "state": {{ state | string | tojson }},
  "message": {{ message | string | tojson }},
  "url": {{ url | tojson }}
}"""
_EVENT_BODY = """{
  {%- set name = event.resource["prefect.resource.name"] | default("", true) | string %}
  {%- set message = event.payload.reason | default("", true) | string %}
  {%- set url = "UI_URL/events/event/" ~ event.occurred.strftime("%Y-%m-%d") ~ "/" ~ event.id %}
  "text": {{ ("segpipe: " ~ event.event ~ ": " ~ name ~ ": " ~ message ~ " " ~ url) | tojson }},
  "event": {{ event.event | tojson }},
  "flow_run": null,
  "state": null,
  "message": {{ (name ~ ": " ~ message) | tojson }},
  "url": {{ url | tojson }}
}"""


def register_alarms(client: SyncPrefectClient, webhook_url: str, ui_url: str) -> None:
    """Make the webhook block and the automations that call it, or bring them up to date."""
    check_webhook(webhook_url)
    headers = SecretDict({"Content-Type": "application/json"})
    block = Webhook(url=webhook_url, headers=headers).save(BLOCK, overwrite=True)
    assert isinstance(block, UUID)  # called where no event loop runs
    for automation in alarms(block, ui_url):
        apply(client, automation)


def alarms(block: UUID, ui_url: str) -> list[AutomationCore]:
    """The automations that call the webhook."""
    run_body, event_body = (body.replace("UI_URL", ui_url.rstrip("/")) for body in (_RUN_BODY, _EVENT_BODY))
    return [
        AutomationCore(
            name=STOPPED_RUN,
            trigger=EventTrigger(
                expect={
                    "prefect.flow-run.Failed",
                    "prefect.flow-run.Crashed",
                    "prefect.flow-run.TimedOut",
                    "segpipe.run.drifted",
                },
                match=_FLOW_RUNS,
                for_each={"prefect.resource.id"},
                posture=Posture.Reactive,  # an update sends only what is given here
                threshold=1,
                within=timedelta(0),
            ),
            actions=[CallWebhook(block_document_id=block, payload=run_body)],
        ),
        AutomationCore(
            name=FAILED_ACTION,
            trigger=EventTrigger(
                expect={"prefect.automation.action.failed"},
                # Not of the alarms themselves: a webhook that is down would call itself for ever.
                match={"prefect.resource.name": "!segpipe alarm*"},
                posture=Posture.Reactive,  # an update sends only what is given here
                threshold=1,
                within=timedelta(0),
            ),
            actions=[CallWebhook(block_document_id=block, payload=event_body)],
        ),
    ]


def register_crash_detection(client: SyncPrefectClient, silent_seconds: int) -> None:
    """Mark a run as crashed when its heartbeats stop: a worker that was killed cannot say so itself."""
    trigger = EventTrigger(
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{state}" for state in _ENDED)},
        match=_FLOW_RUNS,
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=silent_seconds),
    )
    crashed = ChangeFlowRunState(
        state=StateType.CRASHED,
        message=f"nothing was heard of the run for {silent_seconds} s: its process or machine was killed; "
        "the next run goes on behind what it committed",
    )
    apply(client, AutomationCore(name=SILENT_RUN, trigger=trigger, actions=[crashed]))


def apply(client: SyncPrefectClient, automation: AutomationCore) -> None:
    """Create the automation, or replace those of its name."""
    found = client.read_automations_by_name(automation.name)
    if found:
        client.update_automation(found[0].id, automation)
    else:
        client.create_automation(automation)
    for doubled in found[1:]:
        client.delete_automation(doubled.id)
