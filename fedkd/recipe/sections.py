"""What a recipe says, section by section: typed, with a default for everything."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ModelConfig:
    """The Stable Diffusion model that the federation starts from."""

    path: str = "tiny-sd"  # a shipped name, a diffusers folder, or a hub id
    name: str = "tiny-sd"  # the name under which students are published
    resolution: int = 32  # pixels, both sides
    guidance_scale: float = 2.0
    num_inference_steps: int = 12
    scheduler: str = "DDIMScheduler"  # used for synthesis, evaluation and serving
    without: list[str] = field(default_factory=list)  # components left out, e.g. [text_encoder_3, tokenizer_3]


@dataclass
class PromptsConfig:
    """A caption grammar: `template` filled from `slots`; `concept` names the slot that is learned."""

    template: str = ""
    slots: dict[str, list[str]] = field(default_factory=dict)
    concept: str = ""
    known: list[str] = field(default_factory=list)  # values of the concept slot that the base knows
    taught: list[str] = field(default_factory=list)  # values that the federation has to teach


@dataclass
class DataConfig:
    """The private captioned images of all users, before they are split over the users."""

    source: str = "digits"  # digits | folder | prompts (drawn by the teachers) | any datasets name or path
    path: str = ""  # for source=folder: pictures with captions; for source=prompts: a text file, a prompt a line
    split: str = "private"  # for digits: private | base | judge; else the datasets split
    image_column: str = "image"  # for a datasets name or path
    caption_column: str = "caption"  # for a datasets name or path, and for a folder's metadata file
    concepts: list[str] = field(default_factory=list)  # for digits: keep only these; empty keeps all
    max_images: int = 0  # 0 keeps all
    partition: str = "pathological"  # pathological | dirichlet | iid
    classes_per_user: int = 1  # pathological
    dirichlet_alpha: float = 0.3  # dirichlet


@dataclass
class FederationConfig:
    """Who takes part, for how long, and how many failures a round survives."""

    edges: int = 2
    users: int = 4
    rounds: int = 2
    quorum: float = 0.5  # share of the nodes asked in a phase that must answer well
    quorums: dict[str, float] = field(default_factory=dict)  # {phase: its own quorum}, e.g. {finetune: 0.9}
    phase_timeout_s: float = 600.0
    deadlines_s: dict[str, float] = field(default_factory=dict)  # {phase: its own time limit}
    wait_s: float = 120.0  # a run's first round waits so long for all nodes; later ones for a quorum of them
    max_message_mb: float = 256.0
    registry_url: str = ""  # http(s)://, s3:// or file:///: nodes pull here; empty: simulate serves, else in messages
    sets_route: str = "federation"  # how D'_n gets to its edge: federation (through the cloud) | edge (HTTP, straight)


@dataclass
class SynthesisConfig:
    """How a user turns D_n into D'_n (EUCI Fig. 2 steps 1 and 2)."""

    method: str = "both"  # image_to_image | text_to_image | both
    strength: float = 0.5  # image_to_image: share of the noise schedule that is redone
    seeds_per_image: int = 2  # image_to_image
    samples: int = 100  # text_to_image: pictures drawn with the personal adapter
    personal_steps: int = 120  # text_to_image: LoRA steps on the private images
    num_inference_steps: int = 12
    guidance_scale: float = 2.0
    batch_size: int = 64
    min_distance: float = 0.05  # guard: RMS pixel distance (0..1) to the nearest private image
    max_redraws: int = 2


@dataclass
class LoraConfig:
    """PEFT LoRA on the UNet (or transformer)."""

    rank: int = 8
    alpha: int = 8
    target_modules: list[str] = field(
        default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
    )


@dataclass
class DPConfig:
    """Differentially private LoRA training (DP-SGD); the unit is one picture of what is trained on."""

    epsilon: float = 0.0  # 0: not private
    delta: float = 1e-5
    max_grad_norm: float = 1.0  # each picture's gradient is clipped to this norm


@dataclass
class FinetuneConfig:
    """LoRA fine-tuning of the cached model on D_E^b at an edge."""

    steps: int = 200
    batch_size: int = 32
    learning_rate: float = 3e-3
    caption_dropout: float = 0.1
    lora: LoraConfig = field(default_factory=LoraConfig)
    dp: DPConfig = field(default_factory=DPConfig)  # of edges, and of the adapters that users draw with


@dataclass
class TeacherConfig:
    """One teacher of a distillation job: the base model of the recipe, changed by an adapter or replaced."""

    name: str = ""  # empty: the file's or folder's own name
    adapter: str = ""  # a LoRA file of fedkd or diffusers, or the folder that holds one
    checkpoint: str = ""  # a whole model of the same architecture: folder, hub id or registry NAME:VERSION
    concepts: list[str] = field(default_factory=list)  # what it draws (data.source=prompts); empty: all of them
    weight: float = 1.0  # lambda before normalisation, 0..1; used by teacher_weights=fixed


@dataclass
class ProgressiveConfig:
    """Halving the steps (Salimans and Ho 2022): start_steps, start_steps/2, ..., end_steps."""

    start_steps: int = 32  # DDIM steps of the first teacher; a power of two
    end_steps: int = 1  # a power of two
    teacher: str = "previous"  # previous: the student of the phase before | edges: the teachers, in all phases


@dataclass
class AdversarialConfig:
    """A discriminator on frozen features beside the distillation term (ADD, LADD)."""

    timesteps: int = 4  # the student is trained on so many equally spaced timesteps
    features: str = "unet"  # unet: the base denoiser's own, of re-noised latents | dinov2: of decoded pictures
    dinov2: str = "facebook/dinov2-small"  # a folder or hub id, with features=dinov2
    weight: float = 0.1  # of the adversarial term, beside 1 for the distillation term
    learning_rate_factor: float = 1.0  # of the discriminator, times distillation.learning_rate
    r1: float = 1e-4  # gradient penalty of the discriminator on real features


@dataclass
class ConsistencyConfig:
    """Latent consistency (LCM): one point of a teacher's trajectory and the next, skipping, give one x0."""

    solver_steps: int = 50  # DDIM grid of the teacher's solver
    huber_c: float = 0.001
    target_decay: float = 0.95  # the target network is the student's moving average; 0: the student itself
    timestep_scaling: float = 10.0  # of the boundary condition c_skip, c_out, as in diffusers' LCMScheduler
    sigma_data: float = 0.5


@dataclass
class DistillationConfig:
    """The cloud's student: what it learns from its teachers, by which method, and how long."""

    method: str = "federated"  # federated | progressive | adversarial | consistency
    student: str = "lora"  # lora: an adapter on the base | full: every weight of the denoiser
    gamma: float = 0.5  # federated: L = (1-gamma) L_task + gamma L_distill (EUCI Eq. 7)
    steps: int = 300
    batch_size: int = 32
    learning_rate: float = 3e-3
    caption_dropout: float = 0.1
    form: str = "same"  # same: both models at one x_t | renoise: teacher sees the student's own prediction
    weighting: str = "truncated_snr"  # c(t): uniform | alphas_cumprod | snr | truncated_snr | min_snr
    min_snr_k: float = 5.0
    distance: str = "mse"  # d: mse | huber | ssim | lpips
    huber_delta: float = 0.1
    teachers: str = "all"  # all | sampled
    teacher_weights: str = "provenance"  # uniform | size | validation | provenance | confidence | fixed
    held_out: float = 0.1  # share of each teacher's pictures kept back to judge the teachers
    outlier: float = 1.25  # lambda = 0 for a teacher whose held-out loss is so many times the base's
    replay: int = 300  # pictures drawn by the base of what it knows, added to D_C
    pictures: int = 300  # a job with data.source=prompts: drawn by each teacher of its concepts
    ema_decay: float = 0.0  # 0: none
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    mixed_precision: str = "no"  # no | fp16 | bf16
    save_every: int = 100  # steps between states that a stopped job resumes from
    sample_every: int = 0  # steps between sheets of sample pictures; 0: at the end alone
    lora: LoraConfig = field(default_factory=LoraConfig)
    progressive: ProgressiveConfig = field(default_factory=ProgressiveConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)


@dataclass
class TrustConfig:
    """What the cloud takes from users and edges, and when an adapter that it took is not believed (lambda 0)."""

    max_pictures: int = 10_000  # a user's set of more is refused
    max_update: float = 10.0  # an adapter is refused whose update BA is so many times a layer's weight (Frobenius)
    norm_outlier: float = 4.0  # lambda 0: an update so many times the median update of the others
    cosine_outlier: float = 0.25  # lambda 0: an update that points away from the others by this share of their accord


@dataclass
class EvaluationConfig:
    """How models are scored between phases."""

    classifier: str = "reference-classifier"  # a shipped name or a folder; empty: no prompt accuracy
    samples_per_concept: int = 24
    batch_size: int = 64
    num_inference_steps: int = 12
    steps_compared: list[int] = field(default_factory=lambda: [1, 2, 4, 8])  # few-step students and their teacher
    max_known_drop: float = 0.05  # a student that loses more than this is only a candidate


@dataclass
class ServingConfig:
    """The edge's HTTP service and the split pictures that a simulation draws at its end."""

    host: str = "127.0.0.1"
    port: int = 0  # 0 takes a free one
    split_images: int = 4
    token: str = ""
    tokens: str = ""  # file of more bearer tokens, each with limits of its own
    requests_per_minute: float = 0.0  # of a token that names no limit; 0: none
    concurrent_requests: int = 0  # of a token that names no limit; 0: none
    max_sessions: int = 64  # split pictures in the making at once
    session_lifetime_s: float = 600.0  # after its last use a session is dropped
    max_waiting: int = 64  # requests that may wait; more are told to come again later
    max_rows: int = 0  # rows of one forward, those of guidance included; 0: learned from the traffic
    batch: bool = True  # requests share forwards; false computes each one alone
    max_body_mb: float = 64.0
    refresh_s: float = 30.0  # how often an edge looks for a newer checkpoint; 0: never
    url: str = ""  # at which other edges and clients reach this one; empty: where it listens
    peers: list[str] = field(default_factory=list)  # URLs of the edges that share the work; its own is passed over
    peer_token: str = ""  # what edges show each other; needed where clients need tokens
    dispatch: str = "social"  # the rule by which a request's edge is chosen
    forward: str = "proxy"  # proxy | redirect: whether this edge passes answers on, or tells clients where to ask
    share_profile: str = ""  # file of `fedkd bench sharing`: like prompts share their first steps; empty: none do
    share_loss: float = 0.01  # share of pictures that sharing may cost by that profile
    share_group: int = 8  # pictures that share at once
    share_cache_mb: float = 64.0  # latents kept for later prompts
    on_demand_models: int = 1  # of those fetched on demand an edge holds so many at once
    controlnets: list[str] = field(default_factory=list)  # [KIND=]FOLDER or hub id: what visual conditions steer by
    gossip_s: float = 0.5  # edges ask each other for news so often
    cache_dir: str = ""  # of an edge that pulls from a registry elsewhere; empty: RUN/edge-cache
    cache_mb: float = 0.0  # an edge's cache of checkpoints holds at most this; 0: no bound
    trusted_keys: list[str] = field(default_factory=list)  # public keys whose checkpoints edges and users take
    require_signature: bool = False  # refuse checkpoints that carry no signature


@dataclass
class RunConfig:
    """Where and how the run is carried out."""

    name: str = "quickstart"
    out: str = "runs"
    registry: str = ""  # empty: RUN/registry
    signing_key: str = ""  # private key that signs what is published (`fedkd keys new`); empty: unsigned
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1  # torch threads of every Flower client process
    tracker: str = ""  # tensorboard | trackio | wandb: losses of a job, figures of each round; empty: none


@dataclass
class PretrainConfig:
    """Training a small Stable Diffusion model from nothing (`fedkd pretrain`)."""

    vae_steps: int = 500
    vae_learning_rate: float = 2e-3
    vae_channels: list[int] = field(default_factory=lambda: [8, 16, 32])
    latent_channels: int = 4
    steps: int = 1800
    batch_size: int = 32
    learning_rate: float = 2e-3
    ema_decay: float = 0.998
    caption_dropout: float = 0.1
    unet_channels: list[int] = field(default_factory=lambda: [32, 64])
    unet_layers: int = 1
    attention_heads: int = 4
    norm_groups: int = 4
    text_width: int = 64
    text_layers: int = 2
    embedding_std: float = 1.0
    classifier_steps: int = 600
    copies: int = 8  # random colourings of each handwritten digit
    save_every: int = 100


@dataclass
class ControlNetConfig:
    """Training the ControlNet that lets a visual condition steer the base model (`fedkd pretrain`)."""

    condition: str = "canny"  # canny | soft-edge | depth | seg
    steps: int = 2000
    batch_size: int = 32
    learning_rate: float = 1e-3
    ema_decay: float = 0.995
    caption_dropout: float = 0.3  # without words the shape has to come from the condition
    embedding_channels: list[int] = field(default_factory=lambda: [16, 32, 64])  # halves the condition between two
    copies: int = 8  # random colourings of each handwritten digit
    save_every: int = 100


@dataclass
class Recipe:
    """Everything that affects a result."""

    description: str = ""
    kind: str = "federation"  # federation | distillation | pretrain | controlnet
    model: ModelConfig = field(default_factory=ModelConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    teachers: list[TeacherConfig] = field(default_factory=list)  # of a distillation job
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    trust: TrustConfig = field(default_factory=TrustConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    serving: ServingConfig = field(default_factory=ServingConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    controlnet: ControlNetConfig = field(default_factory=ControlNetConfig)
    run: RunConfig = field(default_factory=RunConfig)
