//! Requests and the settings in pictures, as JSON.

use super::TestResult;
use super::memory::bounded;
use serde_json::{Map, Value};
use std::path::Path;
use tweedie::images::{ColorType, Photo, Picture, Samples, TextChunk, encode_png};
use tweedie_pipelines::verify::Recipe;
use tweedie_pipelines::{
    Adapters, ImageToImageRequest, InpaintRequest, LatentDiffusion, Options, PixelRequest, ReusedSettings,
    TextToImageRequest,
};

/// Bytes that a schedule of as many training steps as there may be takes beside what a request has.
const SCHEDULE: usize = 32 << 20;

/// A request of any task, by its JSON; and what each option makes of the text. One that goes through JSON again is the same.
pub fn request(model: &LatentDiffusion, bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let options = [TextToImageRequest::options(), InpaintRequest::options(), PixelRequest::options()];
    options.iter().flatten().for_each(|option| drop(option.kind.parse(&text)));
    bounded("a request", bytes.len() + SCHEDULE / 128, 128, || {
        let Ok(fields) = serde_json::from_str::<Map<String, Value>>(&text) else { return false };
        let _ = PixelRequest::default().read(fields.clone());
        if let Ok(photo) = grey() {
            let mut request = ImageToImageRequest::of(photo.clone(), TextToImageRequest::default());
            let _ = request.read(fields.clone()).map(|()| model.settle(&request));
            let mut request = InpaintRequest::of(photo, None, TextToImageRequest::default());
            let _ = request.read(fields).map(|()| model.settle(&request));
        }
        let Ok(request) = serde_json::from_str::<TextToImageRequest>(&text) else { return false };
        let written = serde_json::to_string(&request).unwrap_or_default();
        let again = serde_json::from_str::<TextToImageRequest>(&written);
        let again = again.ok().and_then(|again| serde_json::to_string(&again).ok());
        assert_eq!(again.as_ref(), Some(&written), "a request is another one after it was written");
        model.settle(&request).is_ok()
    })
}

fn grey() -> tweedie::Result<Photo> {
    Photo::new(64, 64, ColorType::Grey, Samples::Eight(vec![7; 64 * 64]))
}

/// The settings of a picture, and the request that made it; and the same text as other programs have it, for another picture.
pub fn settings(model: &LatentDiffusion, folder: &Path, bytes: &[u8]) -> TestResult<bool> {
    let (text, path) = (String::from_utf8_lossy(bytes), folder.join("x.png"));
    let with_text = |keyword: &str| encode_png(&Picture::new(1, 1, vec![0; 3])?, &[TextChunk::new(keyword, &*text)]);
    let [own, others] = [TextChunk::SETTINGS, TextChunk::PARAMETERS].map(with_text);
    let (own, others) = (own?, others?);
    let reused = |picture: &[u8]| -> TestResult {
        std::fs::write(&path, picture)?;
        bounded("settings for another picture", picture.len() + SCHEDULE / 128, 128, || {
            let Ok(found) = ReusedSettings::read(&path) else { return };
            let mut request = TextToImageRequest::default();
            let _ = request.read(found.for_another_model()).map(|()| model.settle(&request));
        });
        Ok(())
    };
    reused(&own)?;
    reused(&others)?;
    Ok(bounded("a picture's settings", own.len() + SCHEDULE / 128, 128, || {
        let Ok(recipe) = Recipe::read(&own, &path) else { return false };
        let _ = (recipe.dtype(), recipe.weights().map(|weights| recipe.other_weights(weights)));
        let _ = recipe.apply_adapters(&mut Adapters::default(), &mut []);
        let Ok(request) = recipe.text_request() else { return false };
        let settled = recipe.settle((64, 64), &mut |_| model.settle(&request));
        settled.is_ok_and(|settings| recipe.faults(&settings).is_ok())
    }))
}
