//! What the data directories stand on: a plain directory, or file systems that can be filled, slowed, made to fail or
//! frozen in time.
//!
//! Invariant: a loop device goes with its last mount (it is detached as soon as it is mounted), and a mount with the
//! room at the latest.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::faulty::Faulty;
use crate::tools::{lacking, run};
use crate::trouble::{Fallible, Trouble, look, pass};
use crate::world::Shape;

/// Room for some segments of 4 MiB, each of which is made ahead of need.
const DISK_MIB: u64 = 64;
/// Three images and their copies share their blocks.
const VAULT_MIB: u64 = 512;

/// What the data directories stand on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ground {
    /// A directory of the machine.
    Plain,
    /// A small ext4 each.
    Ext4,
    /// The same on a block device that fails when told to.
    Faulty,
    /// The same on an image that can be copied in an instant.
    Reflink,
}

impl Ground {
    /// What it needs and this machine has not.
    pub(crate) fn lacks(self) -> Option<String> {
        let common = ["losetup", "mkfs.ext4", "mount", "umount", "truncate"];
        let more: &[&str] = match self {
            Self::Plain => return None,
            Self::Ext4 => &[],
            Self::Faulty => &["qemu-storage-daemon", "fusermount3", "fsck.ext4"],
            Self::Reflink => &["mkfs.xfs", "cp"],
        };
        let devices: &[&str] = match self {
            Self::Faulty => &["/dev/loop-control", "/dev/fuse"],
            _ => &["/dev/loop-control"],
        };
        let missing = devices.iter().find(|path| !Path::new(path).exists());
        let no_device = || {
            let found = run(&["losetup", "--find"]).err();
            found.map(|trouble| trouble.to_string())
        };
        lacking(&common)
            .or_else(|| lacking(more))
            .or_else(|| missing.map(|path| format!("there is no {path}")))
            .or_else(no_device)
    }
}

/// The disks of a cluster, node 1 first.
#[derive(Debug)]
pub(crate) struct Disks {
    place: PathBuf,
    disks: Vec<Disk>,
    /// The XFS on which the images are.
    vault: Option<PathBuf>,
    copies: usize,
}

/// A file system on a loop device on an image.
#[derive(Debug)]
pub(crate) struct Disk {
    image: PathBuf,
    at: PathBuf,
    device: String,
    is_mounted: bool,
    faulty: Option<Faulty>,
}

impl Disks {
    pub(crate) fn none() -> Self {
        let place = PathBuf::new();
        Self {
            place,
            disks: Vec::new(),
            vault: None,
            copies: 0,
        }
    }

    pub(crate) fn make(place: &Path, shape: Shape) -> Fallible<Self> {
        let mut disks = Self {
            place: place.to_path_buf(),
            ..Self::none()
        };
        let images = match shape.ground {
            Ground::Plain => return Ok(disks),
            Ground::Ext4 | Ground::Faulty => place.to_path_buf(),
            Ground::Reflink => disks.make_vault()?,
        };
        for id in 1..=shape.nodes {
            let image = images.join(format!("disk-{id}.img"));
            run(&["truncate", "-s", &format!("{DISK_MIB}M"), text(&image)])?;
            // The blocks of the device below may be as large; a disk so small would get smaller ones.
            run(&["mkfs.ext4", "-q", "-F", "-b", "4096", text(&image)])?;
            let faulty = (shape.ground == Ground::Faulty).then(|| Faulty::over(&image));
            let mut disk = Disk {
                image,
                at: place.join(format!("disk-{id}")),
                device: String::new(),
                is_mounted: false,
                faulty: faulty.transpose()?,
            };
            disk.mount()?;
            disks.disks.push(disk);
        }
        Ok(disks)
    }

    fn make_vault(&mut self) -> Fallible<PathBuf> {
        let (image, at) = (self.place.join("vault.img"), self.place.join("vault"));
        run(&["truncate", "-s", &format!("{VAULT_MIB}M"), text(&image)])?;
        run(&["mkfs.xfs", "-q", "-m", "reflink=1", text(&image)])?;
        std::fs::create_dir_all(&at)?;
        run(&["mount", "-o", "loop", text(&image), text(&at)])?;
        self.vault = Some(at.clone());
        Ok(at)
    }

    /// A node's data directory.
    pub(crate) fn data(&self, id: usize) -> PathBuf {
        match self.disks.get(id - 1) {
            Some(disk) => disk.at.join("data"),
            None => self.place.join(format!("data-{id}")),
        }
    }

    pub(crate) fn disk(&mut self, id: usize) -> &mut Disk {
        &mut self.disks[id - 1]
    }

    /// What has reached a node's disk until now, in an instant. See [`Disk::become_copy`].
    pub(crate) fn freeze(&mut self, id: usize) -> Fallible<PathBuf> {
        self.copies += 1;
        let image = &self.disks[id - 1].image;
        let copy = image.with_file_name(format!("copy-{}.img", self.copies));
        run(&["cp", "--reflink=always", text(image), text(&copy)])?;
        Ok(copy)
    }

    /// Takes all away.
    pub(crate) fn remove(self) -> Fallible<()> {
        for mut disk in self.disks {
            disk.unmount()?;
        }
        if let Some(vault) = self.vault {
            unmount(&vault)?;
        }
        Ok(())
    }
}

impl Disk {
    pub(crate) fn mount(&mut self) -> Fallible<()> {
        self.attach()?;
        self.mount_device()
    }

    fn attach(&mut self) -> Fallible<()> {
        let source = self.faulty.as_ref().map_or(&self.image, Faulty::export);
        // Direct: what the file system writes is in the image, not in a cache above it. Not so over the daemon's
        // export: it mixes up writes that are under way at once, as direct ones are.
        let direct = if self.faulty.is_some() { "off" } else { "on" };
        let direct = format!("--direct-io={direct}");
        let attach = ["losetup", &direct, "--find", "--show", text(source)];
        // Another program may take the same free one.
        let found = look(Duration::from_secs(5), || Ok(run(&attach).ok()))?;
        let found = found.map_or_else(|| run(&attach), Ok)?;
        self.device = found.trim().to_owned();
        Ok(())
    }

    fn mount_device(&mut self) -> Fallible<()> {
        std::fs::create_dir_all(&self.at)?;
        let mounted = run(&["mount", "-o", "nodiscard", &self.device, text(&self.at)]);
        // While it is mounted it stays; with the mount it goes.
        run(&["losetup", "--detach", &self.device])?;
        mounted?;
        self.is_mounted = true;
        Ok(())
    }

    /// Nobody may use it any more.
    pub(crate) fn unmount(&mut self) -> Fallible<()> {
        let source = self.faulty.as_ref().map_or(&self.image, Faulty::export);
        if std::mem::take(&mut self.is_mounted) {
            unmount(&self.at)?;
            let gone = || match run(&["losetup", &self.device]) {
                Ok(shown) => Ok((!shown.contains(text(source))).then_some(())),
                Err(_) => Ok(Some(())),
            };
            look(Duration::from_secs(10), gone)?;
        }
        Ok(())
    }

    /// Puts a file system right that has seen its device fail.
    pub(crate) fn repair(&mut self) -> Fallible<()> {
        self.unmount()?;
        self.attach()?;
        // Through the loop device, as the mount: beside it there would be another cache. It fails also when it has
        // corrected something; whether it is good now the mount will say.
        let _ = run(&["fsck.ext4", "-p", &self.device]);
        self.mount_device()
    }

    /// The power comes back: what is on the disk is what was on it when the copy was made.
    pub(crate) fn become_copy(&mut self, copy: &Path) -> Fallible<()> {
        self.unmount()?;
        std::fs::rename(copy, &self.image)?;
        self.mount()
    }

    /// The device, on [`Ground::Faulty`].
    pub(crate) fn faulty(&mut self) -> &mut Faulty {
        self.faulty
            .as_mut()
            .expect("it stands on a device that fails")
    }

    pub(crate) fn at(&self) -> &Path {
        &self.at
    }

    /// Its device's number, as `7:0`.
    pub(crate) fn number(&self) -> Fallible<String> {
        let name = self.device.trim_start_matches("/dev/");
        let number = std::fs::read_to_string(format!("/sys/class/block/{name}/dev"))?;
        Ok(number.trim().to_owned())
    }
}

/// A process that was just killed may still hold it for a moment.
fn unmount(at: &Path) -> Fallible<()> {
    for _ in 0..100 {
        if run(&["umount", text(at)]).is_ok() {
            return Ok(());
        }
        pass(Duration::from_millis(20))?;
    }
    run(&["umount", text(at)]).map(drop)
}

/// Paths here are made of ASCII; that of the temporary directory is the caller's.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap_or("")
}

/// The error for a path that no command can be given.
pub(crate) fn checked(place: &Path) -> Fallible<()> {
    match place.to_str() {
        Some(_) => Ok(()),
        None => Err(Trouble::Broken(format!("{} is not UTF-8", place.display()))),
    }
}
