//! Pictures as bytes, on the way out and in.

use super::answer::Answer;
use super::extract::InPath;
use super::{App, Shared, awaited};
use crate::serve::failure::{Failure, FailureCode};
use crate::serve::store::{IMAGE, MASK, of_job};
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use tweedie::images::PictureFormat;

/// `GET /api/jobs/ID/pictures/N`.
pub async fn picture(State(app): Shared, InPath((id, index)): InPath<(String, String)>) -> Answer {
    app.board.store.job(&id).await?;
    let missing = || Failure::new(FailureCode::Missing, format!("the job {id} has no picture {index:?}"));
    let bytes = awaited::picture(&app.board, &id, index.parse().map_err(|_| missing())?).await?;
    Ok(png(bytes, "private, max-age=31536000, immutable"))
}

/// `GET /api/jobs/ID/preview`.
pub async fn preview(State(app): Shared, InPath(id): InPath<String>) -> Answer {
    app.board.store.job(&id).await?;
    let missing = || Failure::new(FailureCode::Missing, format!("the job {id} has no preview"));
    Ok(png(app.board.store.get(&of_job(&id, "preview.png")).await?.ok_or_else(missing)?, "no-store"))
}

/// `GET /api/jobs/ID/image`.
pub async fn image(State(app): Shared, InPath(id): InPath<String>) -> Answer {
    given(&app, &id, IMAGE).await
}

/// `GET /api/jobs/ID/mask`.
pub async fn mask(State(app): Shared, InPath(id): InPath<String>) -> Answer {
    given(&app, &id, MASK).await
}

async fn given(app: &App, id: &str, name: &str) -> Answer {
    app.board.store.job(id).await?;
    let missing = || Failure::new(FailureCode::Missing, format!("the job {id} was made from no {name}"));
    let bytes = app.board.store.input(id, name).await?.ok_or_else(missing)?;
    let kind = PictureFormat::of_bytes(&bytes).map_or("application/octet-stream", mime);
    Ok(([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "private, max-age=31536000, immutable")], bytes)
        .into_response())
}

fn png(bytes: Bytes, cache: &'static str) -> axum::response::Response {
    ([(header::CONTENT_TYPE, "image/png"), (header::CACHE_CONTROL, cache)], bytes).into_response()
}

/// What a format is called on the web.
pub fn mime(format: PictureFormat) -> &'static str {
    match format {
        PictureFormat::Png => "image/png",
        PictureFormat::Jpeg => "image/jpeg",
        PictureFormat::WebP => "image/webp",
    }
}

/// The bytes of a file in base64, alone or as a data URL.
pub fn data(text: &str, field: &str) -> Result<Bytes, Failure> {
    let encoded = match text.strip_prefix("data:") {
        Some(url) => url.split_once(";base64,").map(|(_, data)| data),
        None => Some(text),
    };
    let wrong = || Failure::field(field, format!("`{field}` is neither base64 nor a data URL in base64"));
    // Line ends are no part of it.
    let encoded: String = encoded.ok_or_else(wrong)?.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    STANDARD.decode(encoded).map(Bytes::from).map_err(|_| wrong())
}

/// Bytes in base64.
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_in_base64_with_and_without_a_head() -> Result<(), Failure> {
        for text in ["AAEC", "AA\nEC", "data:image/png;base64,AAEC"] {
            assert_eq!(data(text, "image")?.as_ref(), [0, 1, 2], "{text}");
        }
        for text in ["A", "data:image/png,AAEC", "/etc/passwd.", "http://a/b.png"] {
            assert_eq!(data(text, "image").map_err(|failure| failure.field), Err(Some("image".into())), "{text}");
        }
        Ok(())
    }
}
