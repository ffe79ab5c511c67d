//! What the program prints: lines on standard output, and on standard error what is said beside them.

use std::io::{self, ErrorKind, Write};

/// Prints a line on standard output. When nobody reads it any more, as behind `| head -1`, the process
/// ends well and says nothing; when it cannot be written for another reason, it ends and says why.
pub(crate) fn print(text: &str) {
    if let Err(error) = write_line(&mut io::stdout().lock(), text) {
        let is_unread = error.kind() == ErrorKind::BrokenPipe;
        if !is_unread {
            note(&format!("standard output: {error}"));
        }
        std::process::exit(i32::from(!is_unread));
    }
}

/// Says a line on standard error, beside what is printed; there it need not be heard.
pub(super) fn note(text: &str) {
    let _ = write_line(&mut io::stderr().lock(), &format!("ganglion: {text}"));
}

fn write_line(out: &mut impl Write, text: &str) -> io::Result<()> {
    // In one piece, so that lines of several writers are not mixed.
    out.write_all(format!("{text}\n").as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_written_at_once_or_its_reader_is_known_to_be_gone() {
        let mut out = io::BufWriter::new(Vec::new());
        write_line(&mut out, "a line").expect("there is room");
        assert_eq!(out.get_ref(), b"a line\n");
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);
        let error = write_line(&mut io::BufWriter::new(writer), "a line").expect_err("unread");
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    }
}
