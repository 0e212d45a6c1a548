//! PAX records as they are read: from a layout, and from archives that anybody wrote.

/// A PAX record: keyword and value.
pub type Record = (Vec<u8>, Vec<u8>);

/// Takes PAX records apart: `LENGTH KEYWORD=VALUE\n`, each. Comments, which are padding, are left out. `None` if they are
/// malformed.
pub fn pax_records(mut text: &[u8]) -> Option<Vec<Record>> {
    let mut records = Vec::new();
    while !text.is_empty() {
        let space = text.iter().position(|byte| *byte == b' ')?;
        let length: usize = str::from_utf8(text.get(..space)?).ok()?.parse().ok()?;
        let record = text.get(space.checked_add(1)?..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (record.get(..equals)?, record.get(equals + 1..)?);
        if key != b"comment" {
            records.push((key.to_vec(), value.to_vec()));
        }
        text = text.get(length..)?;
    }
    Some(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_taken_apart_or_refused() {
        let record = |key: &[u8], value: &[u8]| (key.to_vec(), value.to_vec());
        assert_eq!(pax_records(b""), Some(vec![]));
        assert_eq!(
            pax_records(b"8 a=b=\n\n13 comment= \n5 c=\n"),
            Some(vec![record(b"a", b"b=\n"), record(b"c", b"")])
        );
        for bad in [
            b"x".as_slice(),
            b"9 a=b\n",
            b"6 ab=c",
            b"5 ab\n",
            b"99999999999999999999999 a=b\n",
            b"0 a=b\n",
        ] {
            assert_eq!(pax_records(bad), None, "{:?}", bad.escape_ascii().to_string());
        }
    }
}
