"""A method's name alone sets its own best known constants, in the launchers and in Python alike."""

import dataclasses

import pytest
import torch

from metarl_l2f import Attenuation, MetaRL, MetaRLSettings, PolicyNetwork, SupervisedSettings
from metarl_l2f.launchers import ant, cheetah_dir, cheetah_vel, image_classification, navigation, rand_params, sinusoid
from metarl_l2f.runs.command_line import parse

REINFORCEMENT = {
    "navigation": navigation.Navigation,
    "cheetah_dir": cheetah_dir.CheetahDir,
    "cheetah_vel": cheetah_vel.CheetahVel,
    "ant": ant.Ant,
    "rand_params": rand_params.RandParams,
}
SUPERVISED = {
    "sinusoid": sinusoid.Sinusoid,
    "image_classification": image_classification.ImageClassification,
}
METHODS = ("l2f", "maml", "maml-two-sigmas", "l2f-paper", "cavia", "promp+l2f")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("domain", REINFORCEMENT)
def test_the_name_alone_sets_what_python_sets(domain, method):
    options = parse(REINFORCEMENT[domain](), ["--method", method])
    assert options.settings == MetaRLSettings.for_domain(domain, method)
    assert options.settings.method == method


@pytest.mark.parametrize("method", ["l2f", "maml", "l2f-paper", "alfa+l2f"])
@pytest.mark.parametrize("problem", SUPERVISED)
def test_the_name_alone_sets_what_python_sets_where_labels_teach(problem, method):
    options = parse(SUPERVISED[problem](), [f"--method={method}"])
    assert options.settings == SupervisedSettings.for_problem(problem, method)
    assert options.settings.method == method


@pytest.mark.parametrize("options", [*REINFORCEMENT.values(), *SUPERVISED.values()])
def test_without_a_name_it_is_l2f(options):
    assert parse(options(), []).settings == parse(options(), ["--method", "l2f"]).settings


def test_mamls_best_known_setting_on_navigation():
    """The tuned MAML of results/navigation/README.md, which had to be spelled out in five flags."""
    found = MetaRLSettings.for_domain("navigation", "maml")
    assert (found.policy.initial_std, found.inner.inner_lr, found.inner.learn_inner_lr) == (0.1, 0.003, True)
    assert (found.gradient.discount, found.gradient.gae_lambda, found.inner.later_lr_factor) == (0.99, 0.9, 0.25)


def test_flags_override_a_methods_own_constants_and_leave_the_others():
    settings = parse(navigation.Navigation(), ["--inner-lr", "0.5", "--method", "maml"]).settings
    maml = MetaRLSettings.for_domain("navigation", "maml")
    assert settings == dataclasses.replace(maml, inner=dataclasses.replace(maml.inner, inner_lr=0.5))


def test_an_unknown_method_is_refused_by_name(capsys):
    assert navigation.main(["--method", "reptile"]) == 2
    assert "error: method must be one of l2f, maml, " in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"maml-two-sigmas, l2f-paper; each but l2f, .*; got 'reptile'"):
        MetaRLSettings.for_domain("navigation", "reptile")
    with pytest.raises(ValueError, match=r"domain must be one of 'navigation', .*got 'chess'"):
        MetaRLSettings.for_domain("chess", "maml")
    with pytest.raises(ValueError, match=r"problem must be one of 'sinusoid', .*got 'chess'"):
        SupervisedSettings.for_problem("chess", "maml")


def test_a_registered_environment_gets_its_domains_setting_by_default():
    run = MetaRL("metarl_l2f/Navigation2D-v0")
    try:
        assert run.settings == MetaRLSettings.for_domain("navigation")
    finally:
        run.close()


def small(method: str, **changes: object) -> MetaRL:
    settings = MetaRLSettings.for_domain("navigation", method)
    sizes = {"tasks_per_batch": 3, "episodes_per_task": 4, "horizon": 6}
    policy = dataclasses.replace(settings.policy, hidden_sizes=(5,))
    return MetaRL("metarl_l2f/Navigation2D-v0", dataclasses.replace(settings, policy=policy, **sizes, **changes))


def test_two_sigmas_is_maml_with_one_free_factor_on_sigma():
    run = small("maml-two-sigmas")
    try:
        learner = run.learner
        assert learner.attenuator.names == ["log_std"]
        assert [name for name, _ in learner.named_parameters() if not name.startswith("network.")] == [
            "rule.step_sizes",
            "attenuator.free",
        ]
        torch.testing.assert_close(learner.attenuator.free.detach(), torch.tensor([0.15]))
        rollouts, _ = run.validation_rollouts()
        # Every task's start is θ, but for σ: log σ + log 0.15, σ = 1.
        for name, values in rollouts.start.params.items():
            theta = learner.theta[name].detach().expand(3, *learner.theta[name].shape)
            expected = torch.full((3, 2), 0.15).log() if name == "log_std" else theta
            torch.testing.assert_close(values, expected, rtol=1e-6, atol=0)
        before = learner.attenuator.free.detach().clone()
        assert run.iterate(1)["line_search/accepted"] == 1.0
        assert not torch.equal(learner.attenuator.free.detach(), before)  # The second σ is meta-learned.
    finally:
        run.close()


def test_two_sigmas_needs_an_action_noise():
    settings = dataclasses.replace(MetaRLSettings.for_domain(None, "maml-two-sigmas"), tasks_per_batch=2, horizon=2)
    with pytest.raises(ValueError, match="Discrete actions: choose a method other than maml-two-sigmas"):
        MetaRL("CartPole-v1", settings)


def test_two_sigmas_with_a_factor_of_one_is_maml():
    """log σ + log 1 is log σ, and the gradient at θ is the same: one method, whose only addition is 1."""
    two = small("maml-two-sigmas")
    maml = MetaRL("metarl_l2f/Navigation2D-v0", dataclasses.replace(two.settings, method="maml"))
    try:
        with torch.no_grad():
            two.learner.attenuator.free.fill_(1.0)
        ours, theirs = (run.validation_rollouts()[0] for run in (two, maml))
        for name, values in theirs.params[-1].items():
            assert torch.equal(ours.params[-1][name], values)
    finally:
        two.close()
        maml.close()


def test_the_paper_to_the_letter():
    run = small("l2f-paper")
    try:
        settings = run.settings
        assert settings.attenuation == Attenuation("tensor", "gradient", "attenuate", "raw", 0.5)
        assert (settings.gradient.inner_data, settings.gradient.estimator) == ("reuse", "reinforce")
        assert settings.initial_std_gamma is None and "log_std" not in run.learner.attenuator.names
        assert not settings.inner.learn_inner_lr
        rollouts, _ = run.validation_rollouts()
        torch.testing.assert_close(rollouts.start.gamma, torch.full((3, 4), 0.5), atol=0.2, rtol=0)
    finally:
        run.close()


def test_a_name_without_its_constants_is_refused():
    with pytest.raises(ValueError, match="maml-two-sigmas needs initial_std_gamma"):
        MetaRLSettings("maml-two-sigmas")
    with pytest.raises(ValueError, match=r"l2f-paper reads γ off raw gradients.*for_domain\(domain, 'l2f-paper'\)"):
        MetaRLSettings("l2f-paper")


@pytest.mark.parametrize("method", METHODS[:4])
def test_any_other_environment_gets_the_maml_papers_constants(method):
    settings = MetaRLSettings.for_domain(None, method)
    assert (settings.method, settings.policy, settings.inner.inner_lr) == (method, PolicyNetwork(), 0.1)


@pytest.mark.parametrize(
    ("domain", "method", "inner_lr"),
    [("navigation", "cavia", 1.0), ("ant", "cavia", 10.0), (None, "cavia", 10.0), ("navigation", "cavia+l2f", 0.1)],
)
def test_a_context_moves_by_its_papers_step_size_unless_pilots_say_otherwise(domain, method, inner_lr):
    settings = MetaRLSettings.for_domain(domain, method)
    assert (settings.inner.inner_lr, settings.policy.context_size) == (inner_lr, 50)
