//! Programs run to their end, with a time limit: a command that hangs is a failure with a name. And programs that run
//! beside a scenario.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Longer than ten waits of ten seconds, the longest that kubectl queues under a policy's default.
const LIMIT: Duration = Duration::from_secs(150);

/// A command that is not run yet.
pub struct Run {
    command: Command,
    input: Option<String>,
    limit: Duration,
}

/// A command that has ended.
#[derive(Debug)]
pub struct Done {
    /// The command line.
    pub command: String,
    /// The exit status; none where a signal or the time limit ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Run {
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self { command: Command::new(program), input: None, limit: LIMIT }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    pub fn input(mut self, text: impl Into<String>) -> Self {
        self.input = Some(text.into());
        self
    }

    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end, or kills it at the time limit.
    pub fn done(mut self) -> Done {
        let started = Instant::now();
        let command = line(&self.command);
        let stdin = if self.input.is_some() { Stdio::piped() } else { Stdio::null() };
        self.command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = match self.command.spawn() {
            Ok(child) => child,
            Err(error) => panic!("cannot run `{command}`: {error}"),
        };
        if let (Some(mut pipe), Some(text)) = (child.stdin.take(), self.input.take()) {
            // A program that ends without reading says why itself.
            thread::spawn(move || pipe.write_all(text.as_bytes()));
        }
        let stdout = drain(child.stdout.take());
        let stderr = drain(child.stderr.take());
        let code = end(&mut child, started + self.limit);
        let read = |reader: thread::JoinHandle<String>| reader.join().unwrap_or_default();
        Done { command, code, stdout: read(stdout), stderr: read(stderr), took: started.elapsed() }
    }

    /// Runs it and returns what it printed; panics with its words where it fails.
    pub fn succeeds(self) -> String {
        self.done().succeeds()
    }
}

impl Done {
    pub fn ok(&self) -> bool {
        self.code == Some(0)
    }

    /// Returns what it printed; panics with its words where it failed.
    #[track_caller]
    pub fn succeeds(self) -> String {
        assert!(self.ok(), "expected to succeed: {}", self.report());
        self.stdout
    }

    /// Returns its words; panics where it succeeded.
    #[track_caller]
    pub fn fails(self) -> String {
        assert!(self.code.is_some_and(|code| code != 0), "expected to fail: {}", self.report());
        self.words()
    }

    /// Returns all that it printed.
    pub fn words(&self) -> String {
        format!("{}{}", self.stderr, self.stdout)
    }

    pub fn report(&self) -> String {
        let code = self.code.map_or("killed".to_owned(), |code| format!("exit status {code}"));
        let words = self.words();
        format!("`{}`: {code} after {:.1} s\n{}", self.command, self.took.as_secs_f64(), words.trim_end())
    }
}

/// A program that runs beside the scenario; ended when this is dropped.
pub struct Background {
    shell: Child,
    log: PathBuf,
}

impl Background {
    /// Starts a program with its output in a file. The shell ends it when the shell's input does, so that it outlives
    /// no test, however that ends.
    pub fn start<A: AsRef<OsStr>>(
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
        log: &Path,
    ) -> Self {
        let file = File::create(log).expect("a log file");
        let shell = Command::new("sh")
            .args(["-c", "\"$@\" < /dev/null & read -r _; kill $!; wait", "sh"])
            .arg(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(file.try_clone().expect("a log file"))
            .stderr(file)
            .spawn()
            .expect("sh");
        Self { shell, log: log.to_owned() }
    }

    /// Returns what it has printed.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // The end of its input.
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

fn end(child: &mut Child, deadline: Instant) -> Option<i32> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.code(),
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(10)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
