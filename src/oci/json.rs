//! JSON as the writers in the field produce it.

use serde::de::DeserializeOwned;
use serde_json::{Error, Value};

/// Parses `bytes`; where that fails, once more with an empty list in place of each `null` that
/// stands at one of `lists`, since Go writes an empty slice so.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8], lists: &[&str]) -> Result<T, Error> {
    let error = match serde_json::from_slice(bytes) {
        Ok(parsed) => return Ok(parsed),
        Err(error) => error,
    };
    let Ok(mut value) = serde_json::from_slice::<Value>(bytes) else {
        return Err(error);
    };
    let mut replaced = false;
    for pointer in lists {
        if let Some(found @ Value::Null) = value.pointer_mut(pointer) {
            *found = Value::Array(Vec::new());
            replaced = true;
        }
    }
    // Without a reason to look again a key that stands twice would now pass
    if !replaced {
        return Err(error);
    }
    // The first error knows line and column, a second one would not
    serde_json::from_value(value).map_err(|_| error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    struct Doc {
        list: Vec<u8>,
    }

    #[test]
    fn null_lists_are_empty_and_errors_keep_their_position() {
        assert!(parse::<Doc>(br#"{"list":null}"#, &["/list"]).unwrap().list.is_empty());
        assert_eq!(parse::<Doc>(br#"{"list":[1]}"#, &["/list"]).unwrap().list, [1]);
        assert!(parse::<Doc>(br#"{"list":null}"#, &[]).is_err());
        assert!(parse::<Doc>(br#"{"list":[],"list":[]}"#, &["/list"]).is_err());
        let error = parse::<Doc>(b"{\n \"list\": 7}", &["/list"]).unwrap_err();
        assert_eq!((error.line(), error.column()), (2, 10));
    }
}
