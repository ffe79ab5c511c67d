//! A program in a terminal, such as `ganglion chat`, through pipes: what is typed, and what it prints.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// How long a line may take to be printed, and an end to come.
const LINE_WAIT: Duration = Duration::from_secs(15);

/// A running program; it ends when its input does, or when this is dropped.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Terminal {
    pub fn start(command: &mut Command) -> Result<Terminal> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let input = child.stdin.take();
        let output = child.stdout.take().context("standard output")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Ok(Terminal { child, input, lines })
    }

    pub fn types(&mut self, line: &str) -> Result<()> {
        self.types_bytes(format!("{line}\n").as_bytes())
    }

    /// Bytes as they are, which need not be text.
    pub fn types_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let input = self.input.as_mut().context("it is open")?;
        Ok(input.write_all(bytes)?)
    }

    /// The next line that it prints.
    pub fn line(&self) -> Result<String> {
        Ok(self.lines.recv_timeout(LINE_WAIT)?)
    }

    /// # Errors
    /// The next line that it prints is another, or there is none in time.
    pub fn shows(&self, line: &str) -> Result<()> {
        let shown = self.line().with_context(|| format!("waiting for {line:?}"))?;
        if shown != line {
            bail!("{shown:?} in place of {line:?}");
        }
        Ok(())
    }

    /// Ends its input and waits until it ends; answers whether it was well, and what it complained of.
    pub fn ends(mut self) -> Result<(bool, String)> {
        drop(self.input.take());
        self.is_over()
    }

    /// Waits until it ends by itself, of which its input must not be the cause; the same answer.
    pub fn ends_by_itself(mut self) -> Result<(bool, String)> {
        let begun = Instant::now();
        while self.child.try_wait()?.is_none() {
            if begun.elapsed() > LINE_WAIT {
                bail!("it goes on");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.is_over()
    }

    fn is_over(&mut self) -> Result<(bool, String)> {
        let mut complaint = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut complaint)?;
        }
        Ok((self.child.wait()?.success(), complaint))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // One that has ended already is no fault.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
