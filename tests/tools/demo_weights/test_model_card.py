"""The model card names what was asked and what came of it, and no place on the machine."""

from tools.demo_weights.model_card import model_card


def test_it_has_the_command_the_seed_and_a_row_for_each_part() -> None:
    card = model_card(
        {"seed": 7, "device": "cpu", "threads": 2, "vae_minutes": 13.0},
        {"vae": {"steps": 90, "seconds": 600, "loss": 0.1, "l1": 0.05}, "base": {"steps": 8, "seconds": 60}},
    )

    assert "tools.demo_weights DIR --seed 7 --device cpu --threads 2 --vae-minutes 13.0" in card
    assert "| vae | 90 | 10 | loss 0.1, l1 0.05 |" in card
    assert "| base | 8 | 1 |" in card
    assert "CPU cores, 2 threads" in card
    assert "no evidence" in card
