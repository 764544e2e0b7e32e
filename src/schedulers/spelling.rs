//! What other programs call schedulers.

use super::{SCHEDULERS, SchedulerChoice, SchedulerEntry, Suffix};

/// Names of A1111, ComfyUI, stable-diffusion.cpp and k-diffusion that follow neither from a scheduler's name nor from its label or
/// class; as [`spelled`] gives them.
const OTHER_NAMES: [(&str, &str); 10] = [
    ("eulerancestral", "euler-a"),
    ("dpm2ancestral", "dpm2-a"),
    ("dpmsolverpp", "dpm++2m"),
    ("dpmpp2msdegpu", "dpm++2m-sde"),
    ("dpmppsdegpu", "dpm++sde"),
    ("dpmsolversinglestep", "dpm++2s"),
    ("plms", "pndm"),
    ("unipcbh2", "unipc"),
    ("ddimuniform", "ddim"),
    ("flowmatcheuler", "flow-euler"),
];

/// Samplers of A1111, ComfyUI and stable-diffusion.cpp that are not here, and the scheduler that does most nearly what they do; as
/// [`spelled`] gives them.
const ELSEWHERE: [(&str, &str); 26] = [
    ("dpmfast", "dpm++2s"),
    ("dpmadaptive", "dpm++2s"),
    ("dpmpp2sa", "dpm++sde"),
    ("dpmpp2sancestral", "dpm++sde"),
    ("dpmpp3msde", "dpm++2m-sde"),
    ("dpmpp3msdegpu", "dpm++2m-sde"),
    ("dpmpp2mv2", "dpm++2m"),
    ("dpmpp2msdeheun", "dpm++2m-sde"),
    ("restart", "euler-a"),
    ("heunpp2", "heun"),
    ("ipndm", "pndm"),
    ("ipndmv", "pndm"),
    ("eulercfgpp", "euler"),
    ("eulerancestralcfgpp", "euler-a"),
    ("dpmpp2mcfgpp", "dpm++2m"),
    ("resmultistep", "dpm++2m"),
    ("resmultistepancestral", "dpm++2m-sde"),
    ("gradientestimation", "dpm++2m"),
    ("ersde", "dpm++2m-sde"),
    ("seeds2", "dpm++sde"),
    ("seeds3", "dpm++sde"),
    ("sasolver", "unipc"),
    ("sasolverpece", "unipc"),
    ("expheun2x0", "dpm++2s"),
    ("expheun2x0sde", "dpm++sde"),
    ("ddimcfgpp", "ddim"),
];

/// Letters and digits of a name in lower case, with `p` for each plus.
fn spelled(name: &str) -> String {
    let letters = name.chars().filter_map(|c| match c {
        '+' => Some('p'),
        c => c.is_ascii_alphanumeric().then(|| c.to_ascii_lowercase()),
    });
    letters.collect()
}

/// The scheduler that a name of another program means: its own name, label or diffusers' class in any case and punctuation, or
/// one of [`OTHER_NAMES`], with `k` before it or without, and the endings of noise levels.
pub(super) fn by_spelling(name: &str) -> Option<SchedulerChoice> {
    let whole = spelled(name);
    let bare = whole.strip_prefix("sample").unwrap_or(&whole);
    let names = [bare, bare.strip_prefix('k').unwrap_or(bare)];
    names.into_iter().find_map(|name| {
        // First those of which the whole name is known: `dpm++2m-sde` is no `dpm++2m` with an ending.
        let named = |suffix: Option<Suffix>, stem: &str| {
            let entry = SCHEDULERS.iter().find(|entry| is_called(entry, stem))?;
            Some(SchedulerChoice { entry, suffix })
        };
        named(None, name).or_else(|| {
            SCHEDULERS.iter().flat_map(|entry| entry.suffixes).find_map(|suffix| {
                let stem = [suffix.name, suffix.label].iter().find_map(|ending| name.strip_suffix(&spelled(ending)))?;
                let choice = named(Some(*suffix), stem)?;
                choice.entry.suffixes.contains(suffix).then_some(choice)
            })
        })
    })
}

fn is_called(entry: &SchedulerEntry, name: &str) -> bool {
    let class = spelled(entry.class_name);
    let class = class.strip_suffix("scheduler").unwrap_or(&class);
    let first_of_class = SCHEDULERS.iter().find(|other| other.class_name == entry.class_name);
    let of_class = first_of_class.is_some_and(|first| first.name == entry.name)
        && (name == class || name.strip_suffix("scheduler") == Some(class));
    let other = OTHER_NAMES.iter().any(|(other, own)| *other == name && *own == entry.name);
    of_class || other || [entry.name, entry.label].iter().any(|own| spelled(own) == name)
}

/// The scheduler that does most nearly what a sampler of another program does that is not here, by its name with an ending or
/// without.
pub(super) fn in_the_place_of(name: &str) -> Option<&'static str> {
    let whole = spelled(name);
    let bare = whole.strip_prefix("sample").unwrap_or(&whole);
    let endings = SCHEDULERS.iter().flat_map(|entry| entry.suffixes);
    let stems =
        endings.flat_map(|suffix| [suffix.name, suffix.label]).filter_map(|ending| bare.strip_suffix(&spelled(ending)));
    let stems: Vec<_> = [bare].into_iter().chain(stems).collect();
    ELSEWHERE.iter().find(|(elsewhere, _)| stems.contains(elsewhere)).map(|(_, own)| *own)
}

/// The name that is most like another one, if any is like it at all.
pub(super) fn nearest(name: &str) -> Option<String> {
    let endings = |entry: &'static SchedulerEntry| {
        entry.suffixes.iter().map(move |suffix| SchedulerChoice { entry, suffix: Some(*suffix) }.name())
    };
    let all = SCHEDULERS.iter().flat_map(|entry| endings(entry).chain([entry.name.to_owned()]));
    let like = |candidate: String| (strsim::jaro_winkler(&spelled(name), &spelled(&candidate)), candidate);
    let (likeness, nearest) = all.map(like).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (likeness > 0.75).then_some(nearest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn means(name: &str) -> Option<String> {
        by_spelling(name).map(|choice| choice.name())
    }

    /// As each program writes them.
    #[test]
    fn names_of_other_programs_are_understood() {
        for (names, own) in [
            (
                &[
                    "Euler a",
                    "euler_a",
                    "EULER A",
                    "euler_ancestral",
                    "k_euler_a",
                    "k_euler_ancestral",
                    "sample_euler_ancestral",
                ][..],
                "euler-a",
            ),
            (&["EulerAncestralDiscreteScheduler", "Euler Ancestral"], "euler-a"),
            (&["Euler", "k_euler", "EulerDiscreteScheduler", "EulerDiscrete", "sample_euler"], "euler"),
            (
                &[
                    "DPM++ 2M",
                    "dpmpp_2m",
                    "dpm++2m",
                    "dpmpp2m",
                    "k_dpmpp_2m",
                    "DPMSolverMultistepScheduler",
                    "dpm++ 2m",
                ],
                "dpm++2m",
            ),
            (&["DPM++ 2M Karras", "dpmpp_2m_karras", "k_dpmpp_2m_karras", "DPMPP-2M-Karras"], "dpm++2m-karras"),
            (&["DPM++ 2M SDE", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu"], "dpm++2m-sde"),
            (&["DPM++ 2M SDE Karras", "DPM++ 2M SDE karras"], "dpm++2m-sde-karras"),
            (&["DPM++ SDE", "dpmpp_sde", "dpmpp_sde_gpu", "DPMSolverSDEScheduler"], "dpm++sde"),
            (&["DPM++ SDE Karras"], "dpm++sde-karras"),
            (&["DPM2", "dpm_2", "k_dpm_2", "KDPM2DiscreteScheduler", "KDPM2"], "dpm2"),
            (&["DPM2 a", "dpm_2_ancestral", "k_dpm_2_a", "KDPM2AncestralDiscreteScheduler"], "dpm2-a"),
            (&["Heun", "k_heun", "HeunDiscreteScheduler"], "heun"),
            (&["LMS", "k_lms", "LMSDiscreteScheduler"], "lms"),
            (&["LMS Karras"], "lms-karras"),
            (&["PLMS", "plms", "PNDM", "PNDMScheduler"], "pndm"),
            (&["UniPC", "uni_pc", "uni_pc_bh2", "UniPCMultistepScheduler"], "unipc"),
            (&["DDIM", "ddim_uniform", "DDIMScheduler"], "ddim"),
            (&["DDPM", "LCM", "TCD", "DEIS"], ""),
            (&["FlowMatchEulerDiscreteScheduler", "flow_euler"], "flow-euler"),
            (&["Euler SGM Uniform", "euler_sgm_uniform"], "euler-sgm-uniform"),
            (&["Euler Align Your Steps", "euler ays"], "euler-ays"),
        ] {
            for name in names {
                let own = if own.is_empty() { name.to_lowercase() } else { own.to_owned() };
                assert_eq!(means(name), Some(own), "{name}");
            }
        }
    }

    /// Every name, label and class means its own scheduler, however it is written.
    #[test]
    fn no_spelling_means_another_scheduler() {
        for entry in SCHEDULERS {
            for suffix in entry.suffixes.iter().copied().map(Some).chain([None]) {
                let choice = SchedulerChoice { entry, suffix };
                for name in
                    [choice.name(), choice.label(), choice.name().to_uppercase(), choice.label().replace(' ', "_")]
                {
                    assert_eq!(means(&name), Some(choice.name()), "{name}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_name_has_a_neighbour_at_most() {
        for (name, neighbour) in
            [("eulr", Some("euler")), ("dpm++2mkaras", Some("dpm++2m-karras")), ("heum", Some("heun")), ("qqq", None)]
        {
            assert_eq!(means(name), None, "{name}");
            assert_eq!(nearest(name).as_deref(), neighbour, "{name}");
        }
        // Samplers of others: that something is spelled like them says nothing.
        for (name, own) in [
            ("DPM++ 2S a", "dpm++sde"),
            ("DPM++ 2S a Karras", "dpm++sde"),
            ("DPM++ 3M SDE Exponential", "dpm++2m-sde"),
            ("dpm_adaptive", "dpm++2s"),
            ("res_multistep", "dpm++2m"),
            ("Restart", "euler-a"),
        ] {
            assert_eq!((means(name), in_the_place_of(name)), (None, Some(own)), "{name}");
        }
        assert_eq!(in_the_place_of("eulr"), None);
        for (elsewhere, own) in ELSEWHERE {
            assert!(means(elsewhere).is_none() && SCHEDULERS.iter().any(|entry| entry.name == own), "{elsewhere}");
        }
        // An ancestral sampler of second order that is none of ours.
        assert_eq!(means("DPM++ 2S a"), None);
        assert_eq!(means("ddim karras"), None);
    }
}
