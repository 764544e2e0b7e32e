//! What holds for every option of every request.

use crate::PixelRequest;
use crate::requests::image_to_image::ImageToImageRequest;
use crate::requests::inpaint::MaskFill;
use crate::requests::inpaint::{InpaintOptions, InpaintRequest};
use crate::requests::kind::OptionKind;
use crate::requests::lora::LoraRequest;
use crate::requests::options::{OptionInfo, Options};
use crate::requests::text_to_image::TextToImageRequest;
use crate::requests::xl::XlRequest;
use serde_json::{Map, Value, json};
use tweedie::images::{ColorType, Margins, Mask, MaskResize, Photo, Samples};

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn requests() -> [Vec<OptionInfo>; 4] {
    [TextToImageRequest::options(), ImageToImageRequest::options(), InpaintRequest::options(), PixelRequest::options()]
}

fn inpaint() -> TestResult<InpaintRequest> {
    let photo = Photo::new(1, 1, ColorType::Grey, Samples::Eight(vec![7]))?;
    let text = TextToImageRequest { prompt: "a cat".into(), ..TextToImageRequest::default() };
    Ok(InpaintRequest::of(photo, Some(Mask::new(1, 1, vec![255])?), text))
}

#[test]
fn every_option_has_help_and_a_name_of_its_own() {
    for options in requests() {
        for option in &options {
            assert!(!option.help.is_empty() && !option.help.ends_with('.'), "{option:?}");
            let same = options.iter().filter(|other| other.name == option.name || other.path == option.path).count();
            assert_eq!(same, 1, "{option:?}");
            if let Some(other) = option.excluded_by {
                assert!(options.iter().any(|known| known.name == other), "{option:?}");
            }
        }
    }
}

/// The names that a list of options offers are those that the field takes, and all of them.
#[test]
fn choices_are_those_of_the_field() -> TestResult {
    for option in [TextToImageRequest::options(), InpaintRequest::options()].concat() {
        let OptionKind::Choice(names) = option.kind else { continue };
        let read = |name: &str| -> TestResult<Result<(), crate::WrongOption>> {
            let mut fields = Map::new();
            option.put(name.into(), &mut fields);
            Ok(inpaint()?.read(fields))
        };
        for name in names {
            assert_eq!(read(name)?, Ok(()), "{option:?}");
            assert_eq!(option.kind.parse(name), Ok(Value::from(*name)));
        }
        assert!(option.kind.parse("?").is_err());
        if let Err(wrong) = read("?")? {
            let expected = format!("it must be {} or {}", names[..names.len() - 1].join(", "), names[names.len() - 1]);
            assert_eq!(wrong.fix, expected);
        }
    }
    Ok(())
}

#[test]
fn a_request_goes_through_json_and_back() -> TestResult {
    let mut request = inpaint()?;
    request.strength = Some(0.3);
    request.text.guidance_interval = Some((0.5, f64::INFINITY));
    request.text.apg = Some(Default::default());
    request.text.seed = u64::MAX;
    request.text.loras = vec![LoraRequest { name: "ink.safetensors".into(), weight: -0.5 }];
    request.text.xl.negative_sizes.crop_top_left = Some((8, 16));
    request.inpaint = InpaintOptions {
        mask_resize: MaskResize::Max,
        mask_fill: MaskFill::Surroundings,
        outpaint: Margins { left: 3, ..Margins::default() },
        composite: false,
        resample: Some(2),
        ..InpaintOptions::default()
    };
    let fields = request.write();
    let text = serde_json::to_string(&fields)?;
    let mut again = inpaint()?;
    again.read(serde_json::from_str(&text)?)?;
    assert_eq!((again.text, again.strength, again.inpaint), (request.text.clone(), Some(0.3), request.inpaint));

    let text = serde_json::to_string(&request.text)?;
    assert_eq!(serde_json::from_str::<TextToImageRequest>(&text)?, request.text);
    Ok(())
}

#[test]
fn what_json_gets_wrong_is_named() -> TestResult {
    let cases = [
        (json!({"prompt": "x", "steps": -1}), "`steps` is -1; it must be a whole number"),
        (
            json!({"prompt": "x", "xl": {"sizes": {"target": [1]}}}),
            "`xl.sizes.target` is [1]; it must be a list of two",
        ),
        (json!({"prompt": "x", "xl": {"size": 1}}), "`xl.size` is 1; there is no such option"),
        (json!({"prompt": "x", "xl": 1}), "`xl` is 1; it must be an object"),
        (json!({"prompt": "x", "wish": true}), "`wish` is true; there is no such option"),
        (json!({"prompt": null}), "`prompt` is null; it must be a text"),
        (json!({"prompt": "x", "apg": {"eta": "?"}}), "`apg` is {\"eta\":\"?\"}; it must be an object"),
    ];
    for (json, message) in cases {
        let error = serde_json::from_value::<TextToImageRequest>(json).map_err(|e| e.to_string());
        assert!(error.as_ref().is_err_and(|e| e.contains(message)), "{message}: {error:?}");
    }
    assert!(serde_json::from_value::<XlRequest>(json!({})).is_ok_and(|xl| xl == XlRequest::default()));
    Ok(())
}
