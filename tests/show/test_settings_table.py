"""The tables of settings name what there is, with its value."""

from __future__ import annotations

import pytest

from reasonkit.config import PROFILES, TRAINED
from reasonkit.show.settings_table import WHY, settings_table


@pytest.mark.parametrize("stage", TRAINED)
def test_every_setting_is_one_of_its_stage(stage):
    settings = getattr(PROFILES["kaggle"], stage)
    assert {*WHY[stage]} <= {*vars(settings)} and {*WHY} == {*TRAINED}
    html = settings_table(stage, settings)._repr_html_()
    assert all(name in html for name in WHY[stage]) and f">{settings.learning_rate:g}<" in html
