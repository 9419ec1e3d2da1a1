//! A block device that fails when told to: an image, exported by qemu's storage daemon as a file for a loop device, with
//! a `blkdebug` layer put in between at run time.
//!
//! An error of a write is met once, and the next write succeeds: as on a real disk, the page cache has dropped the bytes
//! by then, and a flush that is tried again says that all is well. Whoever believes it has lost them.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::disks::text;
use crate::tools::run;
use crate::trouble::{Fallible, Trouble, look};

/// Which request fails.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Failing {
    /// The next write, once.
    Write,
    /// The next flush, once.
    Flush,
    /// Every write, until the device is well again.
    AllWrites,
}

#[derive(Debug)]
pub(crate) struct Faulty {
    daemon: Child,
    socket: PathBuf,
    export: PathBuf,
    layers: usize,
}

impl Faulty {
    pub(crate) fn over(image: &Path) -> Fallible<Self> {
        let (export, socket) = (image.with_extension("export"), image.with_extension("qmp"));
        std::fs::write(&export, "")?; // FUSE mounts over it.
        let mut command = Command::new("qemu-storage-daemon");
        let image = text(image);
        command.args([
            "--blockdev",
            &format!("driver=file,node-name=image,filename={image}"),
        ]);
        command.args(["--blockdev", "driver=raw,node-name=disk,file=image"]);
        let mount = text(&export);
        command.args([
            "--export",
            &format!("type=fuse,id=export,node-name=disk,mountpoint={mount},writable=on"),
        ]);
        let listen = text(&socket);
        command.args([
            "--chardev",
            &format!("socket,id=qmp,path={listen},server=on,wait=off"),
        ]);
        command.args(["--monitor", "chardev=qmp"]);
        let log = std::fs::File::create(export.with_extension("log"))?;
        let daemon = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let faulty = Self {
            daemon,
            socket,
            export,
            layers: 0,
        };
        let ready = look(Duration::from_secs(10), || {
            let size = std::fs::metadata(&faulty.export)?.len();
            Ok((size > 0 && faulty.socket.exists()).then_some(()))
        })?;
        ready.ok_or_else(|| Trouble::Broken("qemu-storage-daemon exports nothing".to_owned()))?;
        Ok(faulty)
    }

    /// The file that is the device.
    pub(crate) fn export(&self) -> &PathBuf {
        &self.export
    }

    pub(crate) fn fail(&mut self, what: Failing) -> Fallible<()> {
        self.layers += 1;
        let name = format!("faulty{}", self.layers);
        let (kind, once) = match what {
            Failing::Write => ("write", true),
            Failing::Flush => ("flush", true),
            Failing::AllWrites => ("write", false),
        };
        let rule = format!(
            r#"{{"event":"none","iotype":"{kind}","errno":5,"once":{once},"immediately":false}}"#
        );
        self.talk(&[
            &format!(
                r#"{{"execute":"blockdev-add","arguments":{{"driver":"blkdebug","node-name":"{name}","image":"image","inject-error":[{rule}]}}}}"#
            ),
            &reopened(&name),
        ])
    }

    /// From now on every request succeeds.
    pub(crate) fn be_well(&mut self) -> Fallible<()> {
        self.talk(&[&reopened("image")])
    }

    /// Each command is answered before the next one is sent.
    fn talk(&self, commands: &[&str]) -> Fallible<()> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let hello = [r#"{"execute":"qmp_capabilities"}"#];
        for command in hello.iter().chain(commands) {
            writeln!(stream, "{command}")?;
            loop {
                let line = lines
                    .next()
                    .ok_or_else(|| Trouble::Broken("QMP ended".to_owned()))??;
                if line.contains("\"error\"") {
                    return Err(Trouble::Broken(format!("{command}: {line}")));
                }
                if line.contains("\"return\"") {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Puts a layer under what is exported.
fn reopened(file: &str) -> String {
    format!(
        r#"{{"execute":"blockdev-reopen","arguments":{{"options":[{{"driver":"raw","node-name":"disk","file":"{file}"}}]}}}}"#
    )
}

impl Drop for Faulty {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        // Its mount stays, and answers nobody. Both fail only when there is nothing left to do.
        let _ = run(&["umount", "--lazy", text(&self.export)]);
    }
}
