"""Nothing of ``lptensor.training`` is public without a test that compares it with formulas of its own, or theory."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from lptensor import training
from recipe_list import RECIPES
from test_training_recipes import BY_HAND

# Of each public name, and each recipe that the common test of one step by hand leaves out: where its oracle is.
ORACLES = {
    "HALP": "halp::test_one_step_is_its_formula",
    "HBFP": "hbfp::test_values_have_an_exponent_for_each_sample_or_tile",
    "LUQ": "formats::test_its_grid_is_the_papers, formats::test_the_odds_are_the_papers",
    "S2FP8": "formats::test_it_is_its_formula",
    "SAWB": "sawb::test_it_is_its_formula",
    "SWALP": "swalp::test_a_low_precision_mean_is_rounded_each_time",
    "Automatic": "loss_scaling::test_the_automatic_scale_halves_at_saturation_and_else_doubles_in_its_span",
    "Blockwise": "states::test_blocks_round_as_a_search_through_the_table_does",
    "DoReFaActivation": "dorefa_madam::test_activations_clip_and_pass_their_gradient_inside_only",
    "DoReFaGradient": "dorefa_madam::test_gradients_are_unbiased_on_a_grid_of_each_sample",
    "DoReFaWeight": "dorefa_madam::test_weights_and_their_gradient_are_the_papers",
    "Dynamic": "loss_scaling::test_dynamic_scales_are_those_of_torch",
    "DynamicFixedPoint": "formats::test_the_exponent_follows_the_authors_rule",
    "Expansion": "states::test_an_expansion_is_the_sum_of_two_roundings",
    "Flexpoint": "formats::test_the_exponent_is_autoflexs",
    "FormatSchedule": "hbfp::test_accuracy_booster_widens_the_ends_always_and_everything_in_the_last_epoch",
    "FourOverSix": "quartet2::test_each_block_ends_at_four_or_six_whichever_costs_less",
    "LossScaler": "loss_scaling::test_a_step_is_round_then_divide_by_hand",
    "MSEden": "quartet2::test_scales_are_stretched_to_one_of_two_neighbours, "
    "quartet2::test_ms_eden_is_unbiased_and_costs_less_than_stochastic_elements",
    "Madam": "dorefa_madam::test_steps_are_their_formula",
    "QuartetLinear": "quartet::test_the_forward_product_is_the_papers, "
    "quartet::test_gradients_are_those_of_the_rounded_operands_on_average_and_masked",
    "Recipe": "accumulation::test_every_recipes_optimizer_steps_with_the_clipped_sum",
    "Static": "loss_scaling::test_a_step_is_round_then_divide_by_hand",
    "Technique": "recipes::test_one_step_is_three_products_of_rounded_operands",
    "ThreeQuarters": "theory::test_one_draw_is_a_neighbour_of_three_quarters, theory::test_three_quarters_are_unbiased",
    "WageActivation": "wage::test_one_step_is_the_papers_bit_for_bit",
    "WageError": "wage::test_one_step_is_the_papers_bit_for_bit",
    "WageGradient": "wage::test_updates_are_integers_of_the_grid_with_the_right_mean",
    "WageWeight": "wage::test_one_step_is_the_papers_bit_for_bit",
    "finish": "formats::test_finishing_leaves_ordinary_parameters_on_the_grid",
    "hbfp_widths": "hbfp::test_accuracy_booster_widens_the_ends_always_and_everything_in_the_last_epoch",
    "prepare": "formats::test_one_step_moves_the_exact_weight_by_the_gradient_at_the_rounded_one",
    "round_layers": "recipes::test_input_weight_and_gradient_are_each_rounded_once",
    "unit_scaling": "unit_scaling::test_one_step_of_a_linear_layer_is_its_formula",
    "gupta": "recipes::test_guptas_outputs_reach_32_and_everything_else_8",
    "fp8_delayed": "recipes::test_the_second_step_is_under_the_first_ones_scales",
    "deepseek promoted": "promotion::test_promoted_sums_are_the_tensor_cores_every_128_and_fp32_between",
    "hbfp": "hbfp::test_stochastic_values_are_neighbours_with_the_right_mean",
    "wage": "wage::test_one_step_is_the_papers_bit_for_bit",
    "quartet": "quartet::test_the_forward_product_is_the_papers",
    "quartet2": "quartet2::test_the_forward_product_is_of_four_over_six",
}
# What the common test knows forward only, since gradients are stochastic.
BACKWARD = {
    "mxfp4": "recipes::test_stochastic_gradients_are_unbiased",
    "luq": "recipes::test_stochastic_gradients_are_unbiased",
    "luq by maximum": "recipes::test_stochastic_gradients_are_unbiased",
    "nvfp4": "recipes::test_nvfp4s_gradients_are_those_of_its_operands_on_average",
    "dorefa": "recipes::test_dorefas_gradients_are_dithered_sample_by_sample",
}


def test_every_name_and_every_recipe_has_one() -> None:
    assert set(training.__all__) - {"recipes"} <= set(ORACLES)
    assert set(RECIPES) <= set(ORACLES) | set(BY_HAND)
    assert {name for name, pairs in BY_HAND.items() if "forward_only" in pairs} == set(BACKWARD)


@pytest.mark.parametrize("place", sorted({*ORACLES.values(), *BACKWARD.values()}))
def test_it_is_there(place: str) -> None:
    for one in place.split(", "):
        file, _, name = one.partition("::")
        source = (Path(__file__).parent / f"test_training_{file}.py").read_text()
        assert name in {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}
