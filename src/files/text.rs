//! Text that users write.

use crate::{Error, ErrorKind, Result};
use std::path::Path;

/// The mark of byte order with which some editors begin a file.
const MARK: char = '\u{feff}';

/// The text of a file, which is called `format` in messages: UTF-8, without the mark of byte order that some editors begin it with.
///
/// # Errors
/// If the file cannot be read, or is not UTF-8; the message names the line.
pub fn read_text(format: &'static str, path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    text_of(bytes).map_err(|reason| Error::malformed(ErrorKind::File, format, path, reason))
}

/// The text of a file's bytes, or why there is none.
pub(crate) fn text_of(bytes: Vec<u8>) -> Result<String, String> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err("it is UTF-16; save it as UTF-8".into());
    }
    match String::from_utf8(bytes) {
        Ok(mut text) => {
            if text.starts_with(MARK) {
                text.drain(..MARK.len_utf8());
            }
            Ok(text)
        }
        Err(error) => {
            let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
            Err(format!("line {line} is not UTF-8; save it as UTF-8"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_no_text_and_other_encodings_are_named() {
        assert_eq!(text_of(b"\xef\xbb\xbfa fox\n".to_vec()), Ok("a fox\n".into()));
        assert_eq!(text_of("a füx \u{feff}".into()), Ok("a füx \u{feff}".into()), "within a text it stays");
        assert_eq!(text_of(Vec::new()), Ok(String::new()));
        let latin = text_of(b"a fox\na f\xfcx\n".to_vec());
        assert!(latin.is_err_and(|reason| reason.starts_with("line 2 is not UTF-8")));
        assert!(text_of(b"\xff\xfea\0".to_vec()).is_err_and(|reason| reason.contains("UTF-16")));
    }
}
