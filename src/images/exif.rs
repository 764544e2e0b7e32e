//! The two EXIF fields that hold a picture's settings where a format has no text of its own (EXIF 2.32, sections 4.5 and 4.6).

use super::TextChunk;

/// `ImageDescription` of the picture, ASCII by the standard, in which everybody writes UTF-8.
const IMAGE_DESCRIPTION: u16 = 0x010e;
/// Where the fields of the photograph are.
const EXIF_FIELDS: u16 = 0x8769;
/// `UserComment` of the photograph.
const USER_COMMENT: u16 = 0x9286;

const ASCII: u16 = 2;
const LONG: u16 = 4;
const UNDEFINED: u16 = 7;

/// What a comment in UTF-16 begins with; its bytes are in the order of the file's, or the higher first.
const UNICODE: &[u8; 8] = b"UNICODE\0";
/// What a comment in ASCII begins with.
const PLAIN: &[u8; 8] = b"ASCII\0\0\0";

/// Bytes of a field in its directory.
const FIELD: usize = 12;

/// EXIF data with the texts that have a field; none if no text has.
pub(super) fn encode(texts: &[TextChunk]) -> Vec<u8> {
    let text = |keyword: &str| texts.iter().find(|text| text.keyword == keyword).map(|text| text.text.as_str());
    // With zeros enough after it: values of up to four bytes would have to stand in the place of their position.
    let description = text(TextChunk::SETTINGS).map(|text| [text.replace('\0', "").as_bytes(), &[0; 4]].concat());
    let comment = text(TextChunk::PARAMETERS).map(|text| {
        let units = text.encode_utf16().flat_map(u16::to_be_bytes);
        UNICODE.iter().copied().chain(units).collect::<Vec<u8>>()
    });
    if description.is_none() && comment.is_none() {
        return Vec::new();
    }
    // Both directories, then the values. The first has at most two fields, the second one.
    let fields = usize::from(description.is_some()) + usize::from(comment.is_some());
    let inner = 8 + 2 + fields * FIELD + 4;
    let values = inner + if comment.is_some() { 2 + FIELD + 4 } else { 0 };
    let mut out = b"MM\0\x2a\0\0\0\x08".to_vec();
    out.extend((fields as u16).to_be_bytes());
    let field = |out: &mut Vec<u8>, tag: u16, kind: u16, count: usize, value: usize| {
        out.extend(tag.to_be_bytes());
        out.extend(kind.to_be_bytes());
        out.extend((count as u32).to_be_bytes());
        out.extend((value as u32).to_be_bytes());
    };
    if let Some(bytes) = &description {
        field(&mut out, IMAGE_DESCRIPTION, ASCII, bytes.len(), values);
    }
    if comment.is_some() {
        field(&mut out, EXIF_FIELDS, LONG, 1, inner);
    }
    out.extend([0; 4]);
    if let Some(bytes) = &comment {
        out.extend(1u16.to_be_bytes());
        field(&mut out, USER_COMMENT, UNDEFINED, bytes.len(), values + description.as_ref().map_or(0, Vec::len));
        out.extend([0; 4]);
    }
    out.extend(description.into_iter().flatten());
    out.extend(comment.into_iter().flatten());
    out
}

/// The texts of EXIF data, as far as they are whole; of fields that are damaged, none.
pub(super) fn decode(data: &[u8]) -> Vec<TextChunk> {
    let Some(reader) = Reader::new(data) else { return Vec::new() };
    let Some(first) = reader.long(4) else { return Vec::new() };
    let comment = reader.pointer(first, EXIF_FIELDS).and_then(|inner| reader.bytes(inner, USER_COMMENT));
    let comment = comment.and_then(|bytes| reader.comment(bytes));
    let description = reader.bytes(first, IMAGE_DESCRIPTION).and_then(|bytes| {
        let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
        String::from_utf8(text.to_vec()).ok()
    });
    // A camera's or a program's description is nobody's settings.
    let description = description.filter(|text| text.starts_with('{'));
    let texts = [(TextChunk::PARAMETERS, comment), (TextChunk::SETTINGS, description)];
    texts.into_iter().filter_map(|(keyword, text)| Some(TextChunk::new(keyword, text?))).collect()
}

/// Numbers of EXIF data, in either order of bytes.
struct Reader<'a> {
    data: &'a [u8],
    little: bool,
}

impl<'a> Reader<'a> {
    fn new(data: &'a [u8]) -> Option<Self> {
        match data.get(..4)? {
            b"II\x2a\0" => Some(Self { data, little: true }),
            b"MM\0\x2a" => Some(Self { data, little: false }),
            _ => None,
        }
    }

    fn short(&self, at: usize) -> Option<u16> {
        let bytes = self.data.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if self.little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    }

    fn long(&self, at: usize) -> Option<usize> {
        let bytes = self.data.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if self.little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) } as usize)
    }

    /// Where in a directory a field is.
    fn field(&self, directory: usize, tag: u16) -> Option<usize> {
        let count = usize::from(self.short(directory)?);
        (0..count).map(|i| directory + 2 + i * FIELD).find(|&at| self.short(at) == Some(tag))
    }

    fn pointer(&self, directory: usize, tag: u16) -> Option<usize> {
        self.long(self.field(directory, tag)? + 8)
    }

    /// A field's value that is a row of bytes.
    fn bytes(&self, directory: usize, tag: u16) -> Option<&'a [u8]> {
        let at = self.field(directory, tag)?;
        matches!(self.short(at + 2)?, 1 | ASCII | UNDEFINED).then_some(())?;
        let count = self.long(at + 4)?;
        let start = if count <= 4 { at + 8 } else { self.long(at + 8)? };
        self.data.get(start..start.checked_add(count)?)
    }

    /// A comment by what it begins with. Of UTF-16 both orders are met, whatever that of the file is; text has more of the
    /// letters below 256.
    fn comment(&self, bytes: &[u8]) -> Option<String> {
        let (code, text) = bytes.split_at_checked(UNICODE.len())?;
        if code == PLAIN {
            return String::from_utf8(text.to_vec()).ok().map(|text| text.trim_end_matches('\0').to_owned());
        }
        (code == UNICODE).then_some(())?;
        let pairs = text.as_chunks::<2>().0;
        let zeros = |place: usize| pairs.iter().filter(|pair| pair[place] == 0).count();
        let swapped = zeros(1) > zeros(0);
        let units = pairs.iter().map(|&pair| if swapped { u16::from_le_bytes(pair) } else { u16::from_be_bytes(pair) });
        String::from_utf16(&units.collect::<Vec<_>>()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_text_comes_back_alone_and_beside_the_other() {
        let [comment, description] =
            [TextChunk::new(TextChunk::PARAMETERS, "a 🦊"), TextChunk::new(TextChunk::SETTINGS, "{}")];
        for texts in
            [vec![], vec![comment.clone()], vec![description.clone()], vec![comment.clone(), description.clone()]]
        {
            assert_eq!(decode(&encode(&texts)), texts);
        }
        let long = vec![
            TextChunk::new(TextChunk::PARAMETERS, "x".repeat(70_000)),
            TextChunk::new(TextChunk::SETTINGS, "{\"a\": 1}"),
        ];
        assert_eq!(decode(&encode(&long)), long);
    }

    /// The lower byte first, as programs on most machines write it, with the comment in either order.
    #[test]
    fn other_orders_of_bytes_are_read() {
        for big_comment in [false, true] {
            let units = "a fox".encode_utf16();
            let text: Vec<u8> =
                units.flat_map(|unit| if big_comment { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect();
            let comment = [&UNICODE[..], &text].concat();
            let mut data = b"II\x2a\0\x08\0\0\0".to_vec();
            data.extend([1, 0, 0x69, 0x87, 4, 0, 1, 0, 0, 0, 26, 0, 0, 0, 0, 0, 0, 0]);
            data.extend([1, 0, 0x86, 0x92, 7, 0, comment.len() as u8, 0, 0, 0, 44, 0, 0, 0, 0, 0, 0, 0]);
            data.extend(&comment);
            assert_eq!(decode(&data), [TextChunk::new(TextChunk::PARAMETERS, "a fox")], "{big_comment}");
        }
    }

    #[test]
    fn damage_gives_no_text_and_nothing_worse() {
        let whole = encode(&[
            TextChunk::new(TextChunk::PARAMETERS, "a fox"),
            TextChunk::new(TextChunk::SETTINGS, "{\"seed\": 1}"),
        ]);
        for at in 0..whole.len() {
            decode(&whole[..at]);
            for value in [0, 1, 0x7f, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = value;
                decode(&damaged);
            }
        }
        assert_eq!(decode(b""), []);
    }
}
