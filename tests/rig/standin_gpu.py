"""Stand-ins for hardware that is not there: four GPUs as `nvidia-smi` and NVIDIA's container hook would show them.

Nothing here computes. The engine takes `--gpus` when an executable called nvidia-container-runtime-hook is on its PATH
as it starts; ours puts the same stand-in nvidia-smi into the container, which lists what NVIDIA_VISIBLE_DEVICES names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UUIDS = tuple(f"GPU-00000000-0000-0000-0000-{number:012d}" for number in (1, 2, 3, 4))

# POSIX sh: an image may have nothing else. `@FOLDER@` has three files on the host: apps.csv, who uses which card,
# driver, its version and its CUDA's, and model, the cards' name. The file /run/standin-gpu-lost makes a container's
# cards unreachable.
_NVIDIA_SMI = r"""#!/bin/sh
# STAND-IN for nvidia-smi, made by kernelbridge's tests: no such hardware is here.
folder='@FOLDER@'
if [ -e /run/standin-gpu-lost ]; then
    echo "Failed to initialize NVML: Unknown Error"
    exit 255
fi
read -r driver cuda <<END
$(cat "$folder/driver" 2>/dev/null || echo 550.00.00 12.4)
END
model=$(cat "$folder/model" 2>/dev/null || echo "Stand-in GPU")
visible="${NVIDIA_VISIBLE_DEVICES-all}"
sees() {
    case "$visible" in all) return 0 ;; void|none|"") return 1 ;; esac
    case ",$visible," in *",$1,"*|*",$2,"*) return 0 ;; esac
    return 1
}
used() {
    if grep -q "$1" "$folder/apps.csv" 2>/dev/null; then echo 4096; else echo 1; fi
}
value() {
    case "$1" in
        index) echo "$2" ;;
        uuid|gpu_uuid) echo "$3" ;;
        name|gpu_name) echo "$model" ;;
        memory.total) echo "81920$mib" ;;
        memory.used) echo "$(used "$3")$mib" ;;
        memory.free) echo "$((81920 - $(used "$3")))$mib" ;;
        utilization.gpu|utilization.memory) echo "0$percent" ;;
        driver_version) echo "$driver" ;;
        mig.mode.current) echo "Disabled" ;;
        pci.bus_id|gpu_bus_id) echo "00000000:0$2:00.0" ;;
        compute_mode) echo "Default" ;;
        *) echo "[Not Supported]" ;;
    esac
}
xml_card() {
    cat <<END
	<gpu id="00000000:0$1:00.0">
		<product_name>$model</product_name>
		<product_brand>NVIDIA</product_brand>
		<product_architecture>Stand-in</product_architecture>
		<mig_mode>
			<current_mig>Disabled</current_mig>
			<pending_mig>Disabled</pending_mig>
		</mig_mode>
		<mig_devices>
			None
		</mig_devices>
		<uuid>$2</uuid>
		<minor_number>$1</minor_number>
		<fb_memory_usage>
			<total>81920 MiB</total>
			<reserved>0 MiB</reserved>
			<used>$(used "$2") MiB</used>
			<free>$((81920 - $(used "$2"))) MiB</free>
		</fb_memory_usage>
		<compute_mode>Default</compute_mode>
		<utilization>
			<gpu_util>0 %</gpu_util>
			<memory_util>0 %</memory_util>
		</utilization>
		<processes>
END
    grep "^$2," "$folder/apps.csv" 2>/dev/null | while IFS=', ' read -r _ pid memory; do
        cat <<END
			<process_info>
				<gpu_instance_id>N/A</gpu_instance_id>
				<compute_instance_id>N/A</compute_instance_id>
				<pid>$pid</pid>
				<type>C</type>
				<process_name>/usr/bin/stand-in</process_name>
				<used_memory>$memory MiB</used_memory>
			</process_info>
END
    done
    printf '\t\t</processes>\n\t</gpu>\n'
}
fields=""; mode=list; header=yes; mib=" MiB"; percent=" %"; only=""; expects_id=""
for word in "$@"; do
    case "$word" in
        --query-gpu=*) mode=query; fields="${word#*=}" ;;
        --query-compute-apps=*) mode=apps ;;
        -x|--xml-format) mode=xml ;;
        --format=*)
            case "$word" in *noheader*) header=no ;; esac
            case "$word" in *nounits*) mib=""; percent="" ;; esac ;;
        --id=*) only="${word#*=}" ;;
        -i) expects_id=yes; continue ;;
        *) if [ -n "$expects_id" ]; then only="$word"; fi ;;
    esac
    expects_id=""
done
if [ "$mode" = apps ]; then
    [ "$header" = yes ] && echo "gpu_uuid, pid, used_gpu_memory [MiB]"
    cat "$folder/apps.csv" 2>/dev/null
    exit 0
fi
[ "$mode" = query ] && [ "$header" = yes ] && echo "$fields" | sed 's/,/, /g'
if [ "$mode" = xml ]; then
    echo '<?xml version="1.0" ?>'
    echo '<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">'
    echo '<nvidia_smi_log>'
    printf '\t<driver_version>%s</driver_version>\n\t<cuda_version>%s</cuda_version>\n' "$driver" "$cuda"
    attached=0; number=0
    for uuid in @UUIDS@; do
        if sees "$number" "$uuid"; then attached=$((attached + 1)); fi
        number=$((number + 1))
    done
    printf '\t<attached_gpus>%s</attached_gpus>\n' "$attached"
fi
found=""; number=0
for uuid in @UUIDS@; do
    if sees "$number" "$uuid" && { [ -z "$only" ] || [ "$only" = "$number" ] || [ "$only" = "$uuid" ]; }; then
        found=yes
        if [ "$mode" = xml ]; then
            xml_card "$number" "$uuid"
        elif [ "$mode" = list ]; then
            echo "GPU $number: $model (UUID: $uuid)"
        else
            line=""
            for field in $(echo "$fields" | tr ',' ' '); do
                line="$line${line:+, }$(value "$field" "$number" "$uuid")"
            done
            echo "$line"
        fi
    fi
    number=$((number + 1))
done
[ "$mode" = xml ] && echo '</nvidia_smi_log>'
[ -n "$found" ] && exit 0
[ "$mode" = xml ] || echo "No devices were found"
exit 6
"""

# Run by runc before the container's process: the state on stdin names the bundle, whose config.json names the root.
_HOOK = r"""#!/bin/sh
# STAND-IN for nvidia-container-runtime-hook, made by kernelbridge's tests.
bundle=$(sed -n 's/.*"bundle":"\([^"]*\)".*/\1/p')
root=$(sed -n 's/.*"root":{"path":"\([^"]*\)".*/\1/p' "$bundle/config.json")
[ -d "$root/usr/bin" ] || exit 0
cp '@SMI@' "$root/usr/bin/nvidia-smi"
"""

_HOOK_NAME = "nvidia-container-runtime-hook"


class StandInGpus:
    """The folder that stands on the engine's and the logins' PATH while the machine "has" its four cards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
        self.insert()

    def insert(self) -> None:
        """The machine has four cards and the container toolkit; the engine sees it at its next start."""
        smi = self.folder / "nvidia-smi"
        smi.write_text(_NVIDIA_SMI.replace("@FOLDER@", str(self.folder)).replace("@UUIDS@", " ".join(UUIDS)))
        hook = self.folder / _HOOK_NAME
        hook.write_text(_HOOK.replace("@SMI@", str(smi)))
        for program in (smi, hook):
            program.chmod(0o755)

    def remove(self) -> None:
        """The machine has neither cards nor toolkit; the engine sees it at its next start."""
        for name in ("nvidia-smi", _HOOK_NAME):
            (self.folder / name).unlink(missing_ok=True)

    def take_hook(self) -> None:
        """The machine has its cards, and no container toolkit; the engine sees it at its next start."""
        (self.folder / _HOOK_NAME).unlink(missing_ok=True)

    def break_hook(self) -> None:
        """The toolkit takes every request and hands out nothing, as old Podman does; seen at the next container."""
        (self.folder / _HOOK_NAME).write_text("#!/bin/sh\n# STAND-IN that hands out nothing.\n")

    def occupy(self, *uuids: str, pid: int = 4242) -> None:
        """Somebody else's process computes on these cards; none with no argument."""
        apps = "".join(f"{uuid}, {pid}, 4095\n" for uuid in uuids)
        (self.folder / "apps.csv").write_text(apps)
        (self.folder / "apps.csv").chmod(0o644)

    def set_driver(self, version: str, cuda: str) -> None:
        """The driver says that it is of this version, and runs CUDA up to that one."""
        (self.folder / "driver").write_text(f"{version} {cuda}\n")
        (self.folder / "driver").chmod(0o644)

    @contextmanager
    def named(self, model: str) -> Iterator[None]:
        """The cards say that they are of this model."""
        path = self.folder / "model"
        path.write_text(f"{model}\n")
        path.chmod(0o644)
        try:
            yield
        finally:
            path.unlink()
