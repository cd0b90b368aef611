"""The replays that are held against golden results: what stands behind ``hwsim replay``, one a line."""

from __future__ import annotations

SMALL = "small.npz --hw pixel8.yaml --dram 60% --policy"
RICH = "small.npz --hw rich.yaml --policy"
DIP_CA = "dip-ca --density 0.4 --set gamma=0.3"

POLICIES = [
    f"{SMALL} {policy}"
    for policy in (
        "dense", "dip", "dip --density 0.35", "dip --set keep_input=0.3", "dip --set weighted=true", "dip-ca",
        "dip-ca --set warm_up=true --set fixed_top_n=4 --set gamma=0.5", "dip-ca --set alpha_blend=true",
        "dip-ca --set weighted=true --density 0.7", "approximate-caching", "magnitude --density 0.75",
        "approximate-caching --set reach=2 --set fixed_top_n=3", "magnitude --set weighted=true --density 0.8", "gate",
        "up", "oracle", "noisy-oracle --seed 2", "random --seed 3", "sliding-window",
        "sliding-window --set keep=0.2 --set window=3", "cats --set calibration=calibration.npz",
        "dip-threshold --set calibration=calibration.npz", "teal --set calibration=calibration.npz --density 0.6",
        "static --set calibration=calibration.npz --eviction static", "predictor --set predictor=nets.npz",
        "nearest_policy.py", "nearest_policy.py --set bonus=3 --density 0.4",
        "dip,dip-ca,gate,oracle,teal --set calibration=calibration.npz",
    )
] + [
    f"plain.npz --hw rich.yaml --policy {policy}"
    for policy in (
        "dense", "relu --dram 70%", "dip --dram 70%", "dip-ca --dram 60%", "magnitude --dram 80%",
        "oracle --density 0.3 --dram 60% --overlap group", "nearest_policy.py --dram 60%", "random --dram 60%",
    )
]  # fmt: skip

EVICTIONS = [
    f"small.npz --hw oneplus12.yaml --dram 65% --policy dip --density 0.4 --eviction {rule}"
    for rule in (
        "arc", "belady", "belady-bypass", "clock", "clock --set eviction.bits=2", "fifo", "lfu", "lfu-aged",
        "lfu-aged --set eviction.period=5", "lru", "none", "random", "random --set eviction.seed=4", "s3fifo",
        "s3fifo --set eviction.small=0.3 --set eviction.threshold=1", "sieve", "static", "steady_eviction.py",
        "steady_eviction.py --set eviction.loss=2",
    )
] + [
    f"{RICH} {DIP_CA} --dram 62% --eviction {rule}"
    for rule in ("arc", "clock", "fifo", "lfu-aged", "lru", "random", "s3fifo", "sieve", "static", "steady_eviction.py")
]  # fmt: skip

OVERLAPS = [
    f"small.npz --hw {device} --dram 60% --policy {policy} --overlap {overlap}"
    for device, policy in (
        ("rich.yaml", "dip --density 0.4"), ("latency.yaml", DIP_CA), ("m5-pro.yaml", "dip"), ("oneplus12.yaml", "gate"),
        ("pixel8.yaml", "oracle"),
    )
    for overlap in ("none", "group", "pipeline", "prefetch --prefetch last-token")
] + [
    f"small.npz --hw {device} --dram 60% --policy {policy} --overlap prefetch --prefetch {rule}"
    for device, policy in (("rich.yaml", "dip --density 0.4"), ("latency.yaml", "dip --eviction lru"))
    for rule in ("cross-layer", "oracle", "trained --set prefetch.path=guess.npz")
] + [
    f"{RICH} dense --overlap group",
    f"{RICH} dense --overlap pipeline --dram 70%",
    f"{RICH} teal --set calibration=calibration.npz --dram 70% --overlap pipeline",
    f"{RICH} cats --set calibration=calibration.npz --dram 70% --overlap prefetch --prefetch last-token --fills",
    f"{RICH} {DIP_CA} --dram 70% --overlap prefetch --prefetch last-token --cache-scope layer",
    f"{RICH} random --dram 70% --overlap prefetch --prefetch oracle --block 4",
]  # fmt: skip

CACHES = [
    f"{SMALL} {policy} {options}"
    for policy in ("dip --density 0.4", "dip-ca")
    for options in (
        "--cache-scope layer", "--cache-scope global --eviction lru", "--cache-scope layer --eviction lru",
        "--cache-scope global --eviction fifo --overlap group",
    )
] + [
    f"{RICH} dip --density 0.4 --dram 65% {options}"
    for options in (
        "--cache-shares input=2,down=1", "--cache-shares traffic", "--cache-shares shares.json",
        "--cache-shares shares.json --cache-scope layer", "--cache-shares traffic --eviction lru", "--admission bypass",
        "--admission bypass --eviction lru", "--admission always --eviction belady", "--pin pin.npz",
        "--warm warm.npz --eviction lru", "--pin pin.npz --eviction clock", "--pin pin.npz --eviction belady",
        "--warm warm.npz --eviction sieve --overlap group", "--warm warm.npz --admission bypass", "--block 4",
        "--block 5 --eviction lru", "--block 4 --layout neurons.npz", "--layout neurons.npz --packed --merge 1KiB",
        "--block 4 --layout neurons.npz --warm warm-blocks.npz", "--block 3 --cache-scope global --eviction lru",
        "--block 8 --layout neurons.npz --cache-shares traffic --overlap pipeline",
    )
] + [
    f"{RICH} dip-ca --dram 65% --pin pin.npz --eviction lru",
    f"{RICH} dip-ca --dram 65% --warm warm.npz --block 1",
    f"{RICH} dip-ca --dram 65% --block 4 --layout neurons.npz",
    f"{SMALL} dip --density density.yaml",
    f"{SMALL} dip-ca --density density.yaml --cache-scope layer",
    f"{SMALL} oracle --density density.yaml --cache-shares traffic",
    f"{SMALL} dip-ca --set gamma=[0.1,0.5,0.9]",
]  # fmt: skip

DEVICES = [
    f"{RICH} dip --density 0.45 --dram 60% {options}"
    for options in (
        "--timing closed-form", "--timing closed-form --overlap group", "--bundle", "--packed",
        "--packed --merge 512B", "--bundle --packed --merge 2KiB --gap 128B", "--packed --merge 2KiB --gap auto",
        "--merge 4KiB --gap auto --overlap pipeline", "--bundle --overlap prefetch --prefetch last-token", "--fills",
        "--fills --overlap group", "--fills --overlap pipeline", "--engine cpu", "--engine npu --overlap group",
        "--ignore pages", "--ignore requests", "--ignore spread", "--ignore thermal", "--ignore compute",
        "--ignore overhead,selection,bookkeeping", "--ignore pages,requests,spread,thermal,compute", "--kv-window 12",
        "--kv-window 5 --overlap group", "--prefill-chunk 2", "--prefill-chunk 4 --overlap pipeline",
        "--kv-tokens 300", "--bits mlp=8,attention=4.5,lm_head=6,kv_cache=16", "--bits mlp=2",
        "--lora adapter", "--lora adapter --lora-merged", "--lora adapter --bits adapter=8 --overlap group",
        "--per-token", "--per-token --overlap pipeline", "--threads 1", "--threads 2",
    )
] + [
    "small.npz --hw latency.yaml --dram 60% --policy dip --ignore latency",
    "small.npz --hw latency.yaml --dram 60% --policy dip --packed --merge 1KiB --gap 64B --overlap pipeline",
    "small.npz --hw latency.yaml --dram 60% --policy dip-ca --timing closed-form",
    "small.npz --hw m5-pro.yaml --dram 60% --policy dip-ca --packed --merge 32KiB --gap auto",
    "small.npz --hw m5-pro.yaml --dram 60% --policy dip --timing closed-form --overlap group",
    "small.npz --hw pixel8.yaml,oneplus12.yaml,m5-pro.yaml,rich.yaml,latency.yaml --dram 22kB --policy dip,dip-ca",
    "small.npz --hw rich.yaml --policy dip",
    "small.npz --hw latency.yaml --policy dip",
    "small.npz --hw pixel8.yaml --policy dip",
    "small.npz --hw pixel8.yaml --policy predictor --set predictor=nets.npz --dram 70% --bits predictor=8",
    "small.npz --hw pixel8.yaml --policy dip-ca --density 0.4 --dram 60% --threads 2 --per-token",
]  # fmt: skip

SAMPLE = [
    f"sample --hw {options}"
    for options in (
        "pixel8.yaml --dram 50% --policy dip-ca",
        "pixel8.yaml --dram 70% --policy dip --eviction lru --threads 2",
        "oneplus12.yaml --dram 60% --policy dip --eviction belady --overlap group",
        "oneplus12.yaml --dram 50% --policy dip-ca --eviction lru --packed --merge 64KiB --gap auto",
        "m5-pro.yaml --dram 60% --policy dip --block 8 --overlap prefetch --prefetch last-token",
        "pixel8.yaml --dram 60% --policy magnitude --eviction lru --cache-scope layer",
        "pixel8.yaml --dram 60% --policy oracle --eviction fifo",
    )
]

MASKS = [
    f"masks.npz --hw {options}"
    for options in (
        "rich.yaml --dram 80% --eviction lru",
        "pixel8.yaml --dram 85% --eviction belady --overlap group",
        "oneplus12.yaml --dram 85% --eviction clock --block 4",
        "m5-pro.yaml --dram 80% --cache-scope layer --eviction lru --overlap pipeline --packed --merge 1KiB",
        "latency.yaml,rich.yaml --dram 90% --cache-shares input=2,down=1 --per-token",
    )
]

REPLAYS = list(dict.fromkeys([*POLICIES, *EVICTIONS, *OVERLAPS, *CACHES, *DEVICES, *SAMPLE, *MASKS]))

# What commands print, word for word.
TEXTS = [
    "replay small.npz --hw rich.yaml --dram 60% --policy dense,dip,dip-ca --density 0.45",
    "replay small.npz --hw pixel8.yaml,rich.yaml,m5-pro.yaml --dram 60% --policy dip,dip-ca --eviction lru",
    "replay small.npz --hw oneplus12.yaml --dram 60% --policy dip --overlap prefetch --prefetch last-token --lora adapter",
    "compare shares.json other.json",
    "trace info small.npz",
    "trace info plain.npz --layers",
    "trace verify small.npz",
    "trace curve small.npz --policy dip --hw pixel8.yaml --dram 60%",
    "trace locality small.npz --policy dip --dram 60%",
]

# What commands give with `--json -`.
JSONS = [
    "trace info small.npz",
    "trace info plain.npz --tokens 30",
    "trace verify plain.npz",
    "trace curve small.npz --policy dip --density 0.35",
    "trace curve plain.npz --policy relu --hw rich.yaml",
    "trace locality small.npz --policy oracle --density 0.3 --dram 62% --seed 4",
    "compare shares.json other.json",
]

# Files that commands write, at the place of OUT.
FILES = [
    "layout small.npz -o OUT.npz",
    "layout plain.npz -o OUT.npz",
    "calibrate small.npz -o OUT.npz",
    "calibrate plain.npz -o OUT.npz",
    "train prefetch small.npz --policy dip --hw pixel8.yaml --dram 60% -o OUT.npz",
    "synth --model smollm2-135m --like small.npz --tokens 12 --context 6 --prompt 2 --signals input,glu --seed 3 -o OUT.npz",
    "synth --model opt-350m --like plain.npz --tokens 6 -o OUT.npz",
    "trace convert small.npz --encoding int8 -o OUT.npz",
    "trace convert small.npz --encoding top --keep-share 0.4 --signals input,glu -o OUT.npz",
    "trace convert plain.npz --signals glu -o OUT.npz",
    "replay small.npz --hw rich.yaml --policy dip --dram 62% --eviction lru --save-cache OUT.npz",
    "replay small.npz --hw rich.yaml --policy dip-ca --dram 62% --cache-scope layer --save-cache OUT.npz",
    "replay small.npz --hw rich.yaml --policy oracle --dram 62% --eviction s3fifo --block 4 --save-cache OUT.npz",
    "replay small.npz --hw rich.yaml --policy dip --overlap pipeline --timeline OUT.json --timeline-tokens 35:36",
    "replay small.npz --hw latency.yaml --policy dip-ca --density 0.4 --timeline OUT.json --timeline-tokens 0:1",
    "replay small.npz --hw rich.yaml --policy dip --density 0.3 --overlap prefetch --prefetch oracle --fills "
    "--timeline OUT.json --timeline-tokens 4:5",
]
