"""`darktree plans`: what is sold, as the plans file says."""

import typer

from darktree_cli.connection import DataDirOption, administer
from darktree_cli.output import Output, OutputOption, dollars, show, table

app = typer.Typer(no_args_is_help=True, help="Show plans, models and prices.")


@app.command("list")
def list_(output: OutputOption = Output.TABLE, data_dir: DataDirOption = None) -> None:
    """List plans with what they buy, and models with their prices."""
    catalog = administer(data_dir, lambda admin: admin.plans())
    plans = [
        (plan.id, plan.display_name, dollars(plan.price_nanos), plan.default_cap_tokens)
        for plan in catalog.plans
    ]
    models = [
        (
            model.id,
            model.display_name,
            dollars(model.prompt_price_nanos * 1000),
            dollars(model.completion_price_nanos * 1000),
        )
        for model in catalog.models
    ]
    prices = table(("model", "name", "1k prompt tokens", "1k completion tokens"), models)
    show(output, catalog, ("plan", "name", "price", "cap a day"), plans, note="\n" + prices)
