//! The cache against damage, limits, other processes and folders that refuse.

use super::*;

/// A cache in a folder of its own, which goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("vksvm-cache-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        Self(folder)
    }

    fn cache(&self) -> Cache {
        Cache::at(self.0.clone())
    }

    fn only_file(&self) -> PathBuf {
        let files: Vec<_> = fs::read_dir(&self.0).unwrap().map(|file| file.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn what_was_put_is_found_by_a_later_cache_and_only_under_its_key() {
    let folder = Folder::new("found");
    folder.cache().put("kind", b"key", b"value");

    assert_eq!(folder.cache().get("kind", b"key").as_deref(), Some(&b"value"[..]));
    assert_eq!(folder.cache().get("kind", b"other"), None);
    assert_eq!(folder.cache().get("other", b"key"), None);
}

#[test]
fn an_entry_cut_short_or_changed_anywhere_counts_as_absent() {
    let folder = Folder::new("damaged");
    folder.cache().put("kind", b"key", b"a value");
    let path = folder.only_file();
    let whole = fs::read(&path).unwrap();

    for end in 0..whole.len() {
        fs::write(&path, &whole[..end]).unwrap();
        assert_eq!(folder.cache().get("kind", b"key"), None, "cut to {end} bytes");
    }
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        fs::write(&path, &damaged).unwrap();
        assert_eq!(folder.cache().get("kind", b"key"), None, "byte {at} changed");
    }
    fs::write(&path, [&whole[..], b"more"].concat()).unwrap();
    assert_eq!(folder.cache().get("kind", b"key"), None);
    fs::write(&path, &whole).unwrap();
    assert!(folder.cache().get("kind", b"key").is_some());
}

#[test]
fn what_is_no_plain_file_counts_as_absent_and_is_not_waited_for() {
    let folder = Folder::new("kinds");
    folder.cache().put("kind", b"key", b"value");
    let path = folder.only_file();
    let moved = folder.0.join("moved");
    fs::rename(&path, &moved).unwrap();

    std::os::unix::fs::symlink(&moved, &path).unwrap();
    assert_eq!(folder.cache().get("kind", b"key"), None, "a link");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
    assert_eq!(folder.cache().get("kind", b"key"), None, "a link to what has no end");
    fs::remove_file(&path).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    assert_eq!(folder.cache().get("kind", b"key"), None, "a pipe that nobody writes to");
    fs::remove_file(&path).unwrap();
    fs::rename(&moved, &path).unwrap();
    assert!(folder.cache().get("kind", b"key").is_some());
}

#[test]
fn a_folder_that_others_may_write_to_is_not_used() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new("open");
    folder.cache().put("kind", b"key", b"value");
    for (mode, used) in [(0o755u32, true), (0o775, false), (0o777, false), (0o1777, false), (0o700, true)] {
        fs::set_permissions(&folder.0, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(folder.cache().get("kind", b"key").is_some(), used, "{mode:o}");
        let entries = || fs::read_dir(&folder.0).unwrap().count();
        let before = entries();
        folder.cache().put("kind", &mode.to_le_bytes(), b"value");
        assert_eq!(entries() > before, used, "{mode:o}");
    }
}

#[test]
fn another_keys_entry_under_the_same_name_counts_as_absent() {
    let folder = Folder::new("foreign");
    folder.cache().put("kind", b"key", b"value");
    fs::write(folder.only_file(), encode(b"yek", b"value")).unwrap();

    assert_eq!(folder.cache().get("kind", b"key"), None);
}

#[test]
fn of_too_many_entries_those_go_that_were_not_used_for_longest() {
    let folder = Folder::new("trim");
    let cache = folder.cache();
    for at in 0..8u64 {
        cache.put("kind", &[at as u8], &[0; 1000]);
        let path = cache.path("kind", &[at as u8]).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(at);
        fs::File::open(path).unwrap().set_modified(time).unwrap();
    }
    assert!(cache.get("kind", &[1]).is_some(), "which is a use");

    trim(&folder.0, 6 * BLOCK);

    let left: Vec<bool> = (0..8).map(|at| cache.path("kind", &[at]).unwrap().exists()).collect();
    assert_eq!(left, [false, true, false, false, false, false, true, true]);
}

#[test]
fn the_folder_stays_within_its_bound() {
    let folder = Folder::new("bound");
    let cache = Cache { limit: 64 * BLOCK, ..folder.cache() };
    for at in 0..500u32 {
        cache.put("kind", &at.to_le_bytes(), &[7; 3000]);
        let files = fs::read_dir(&folder.0).unwrap().count() as u64;
        assert!(files <= 64 + 64 / TRIM_PART, "{files} files after {at} entries");
    }
    cache.put("kind", b"large", &vec![0; 65 * BLOCK as usize]);
    assert_eq!(cache.get("kind", b"large"), None, "an entry over the limit is not kept");
    assert!(cache.get("kind", &499u32.to_le_bytes()).is_some());
}

#[test]
fn what_a_dead_process_left_goes_and_what_is_being_written_stays() {
    let folder = Folder::new("stale");
    folder.cache().put("kind", b"key", b"value");
    let (dead, alive) = (folder.0.join(".1-0.new"), folder.0.join(".2-0.new"));
    fs::write(&dead, b"half").unwrap();
    fs::write(&alive, b"half").unwrap();
    fs::File::open(&dead).unwrap().set_modified(SystemTime::now() - 2 * STALE).unwrap();

    trim(&folder.0, MAX_BYTES);

    assert!(!dead.exists() && alive.exists());
}

#[test]
fn a_folder_that_cannot_be_written_and_no_folder_at_all_keep_nothing() {
    let file = Folder::new("file");
    fs::write(&file.0, b"not a folder").unwrap();
    for cache in [Cache::at("/proc/vksvm".into()), file.cache(), Cache::off()] {
        cache.put("kind", b"key", b"value");
        assert_eq!(cache.get("kind", b"key"), None);
    }
    fs::remove_file(&file.0).unwrap();
}

/// Starts this test again in processes of their own, through a shell that runs `before` first; none inside of such a process, where
/// the given folder is the one to work in.
fn in_own_processes(name: &str, before: &str, folder: &Folder, count: usize) -> Option<PathBuf> {
    const INSIDE: &str = "VKSVM_TEST_CACHE";
    if let Some(folder) = std::env::var_os(INSIDE) {
        return Some(folder.into());
    }
    let children: Vec<_> = (0..count)
        .map(|_| {
            std::process::Command::new("/bin/sh")
                .args(["-c", &format!("{before}exec \"$@\" --test-threads 1 --nocapture"), "sh"])
                .args(crate::own_process::again())
                .args(["--exact", &format!("cache::tests::{name}")])
                .env(INSIDE, &folder.0)
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }
    None
}

#[test]
fn a_device_without_room_for_the_file_leaves_no_half_entry() {
    let folder = Folder::new("full");
    // Writing past the limit fails as writing to a full disk does, after as much as there was room for.
    let name = "a_device_without_room_for_the_file_leaves_no_half_entry";
    let limited = "trap '' XFSZ; ulimit -f 8; ";
    let Some(inside) = in_own_processes(name, limited, &folder, 1) else {
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1, "the one entry that there was room for");
        return;
    };
    let cache = Cache::at(inside);
    cache.put("kind", b"large", &[1; 100_000]);
    assert_eq!(cache.get("kind", b"large"), None);
    cache.put("kind", b"small", &[1; 100]);
    assert!(cache.get("kind", b"small").is_some());
}

#[test]
fn processes_that_write_read_and_trim_one_folder_find_whole_entries_or_none() {
    let folder = Folder::new("processes");
    let name = "processes_that_write_read_and_trim_one_folder_find_whole_entries_or_none";
    let Some(inside) = in_own_processes(name, "", &folder, 3) else {
        let left = fs::read_dir(&folder.0).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        assert_eq!(left.filter(|name| !name.ends_with(ENDING)).count(), 0, "nothing half-written is left");
        return;
    };
    std::thread::scope(|scope| {
        for thread in 0..2u32 {
            let cache = Cache { limit: 24 * BLOCK, ..Cache::at(inside.clone()) };
            scope.spawn(move || {
                let mut found = 0;
                for round in 0..400u32 {
                    let key = round.wrapping_mul(7 + thread) % 40;
                    let value = vec![key as u8; 1000 + 100 * key as usize];
                    match cache.get("kind", &key.to_le_bytes()) {
                        Some(kept) if kept == value => found += 1,
                        Some(_) => panic!("another value than was put"),
                        None => cache.put("kind", &key.to_le_bytes(), &value),
                    }
                }
                assert!(found > 0, "nothing was ever found");
            });
        }
    });
}
