"""vLLM in this program: `AsyncLLM` as an `Engine`.

vLLM starts a process of its own for the model and talks to it over local sockets; scripts that open one need the usual
`if __name__ == "__main__":`. On a CPU the model runs in float32 and without a compiler.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from treewright.agent.policies.engine import Ask, EngineDead, EnginePolicy, Told
from treewright.agent.policies.prompts import Template, Window, template_for
from treewright.agent.policies.routed import routes_told
from treewright.agent.policies.weights import folder_version, served_folder
from treewright.envs.errors import TreewrightError
from treewright.search.types import PolicyFault
from treewright.training.flops import work_of_folder

__all__ = ["VLLMEngine", "WeightTaker", "open_vllm"]

LARGEST_STATE = 2 << 30  # bytes that are sent to the engine's process as one message
QUIET = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
WATCH = 0.5  # seconds between looks at whether the engine's process still lives, while it is waited for
ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


class WeightTaker:
    """Mixed into vLLM's worker: new weights from a folder or from safetensors bytes.

    On a CPU vLLM multiplies with packed copies of the weights. A reload packs what the files name anew; the output
    layer of a model that ties it to its embedding is in no file, and its copy stays the old one (seen in 0.32). It is
    packed again here.
    """

    model_runner: Any

    def take_folder(self, folder: str) -> None:
        self.model_runner.reload_weights(weights_path=folder)
        self._tie()

    def take_weights(self, data: bytes) -> None:
        from safetensors.torch import load

        self.model_runner.reload_weights(weights_iterator=iter(load(data).items()))
        self._tie()

    def tie_head(self) -> None:
        """After weights that vLLM took by itself."""
        self._tie()

    def _tie(self) -> None:
        model = self.model_runner.get_model()
        head = getattr(model, "lm_head", None)
        if getattr(model.config, "tie_word_embeddings", False) and head is not None and hasattr(head, "quant_method"):
            embed = getattr(model.model.embed_tokens, "base_layer", model.model.embed_tokens)
            head.weight = embed.weight
            head.quant_method.process_weights_after_loading(head)


class VLLMEngine:
    """An `AsyncLLM` and how to exchange its weights. It belongs to the event loop that uses it first.

    opened  starts one; called again when its process has died
    sleeps  whether it can give its memory back
    """

    def __init__(self, opened: Callable[[], Any], sleeps: bool) -> None:
        self.opened, self.sleeps = opened, sleeps
        self.llm = opened()
        self.longest = int(self.llm.model_config.max_model_len)
        self.block = int(self.llm.vllm_config.cache_config.block_size or 0)
        self._numbers = itertools.count()
        self._adapter: Any = None
        self._weights: tuple[str, dict[str, Any]] | None = None  # the order that exchanged them last
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def start(cls, model: str, **options: Any) -> VLLMEngine:
        """Loads `model`; `options` are vLLM's engine arguments on top of ours. Blocks until it can serve.

        Raises TreewrightError where vLLM cannot load it, or is asked to sleep where it cannot.
        """
        os.environ.update({k: v for k, v in QUIET.items() if k not in os.environ})
        from vllm import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        cpu = bool(current_platform.is_cpu())
        ours: dict[str, Any] = {
            "enable_prefix_caching": True,
            "logprobs_mode": "processed_logprobs",  # those of the distribution sampled from, masks included
            "disable_log_stats": True,
            "enable_sleep_mode": not cpu,
            "worker_extension_cls": f"{__name__}.WeightTaker",
            "structured_outputs_config": {"backend": "guidance"},
        }
        if cpu:
            os.environ.update({k: v for k, v in ON_CPU.items() if k not in os.environ})
            ours |= {"dtype": "float32", "enforce_eager": True, "block_size": 32, "max_num_seqs": 64}
            ours["distributed_executor_backend"] = "uni"
            if options.get("enable_sleep_mode"):
                raise TreewrightError(
                    "enable_sleep_mode: vLLM's CPU build cannot give memory back; leave it out, the loop works without"
                )

        def opened() -> Any:
            try:
                return AsyncLLM.from_engine_args(AsyncEngineArgs(model=model, **{**ours, **options}))
            except TypeError as error:
                if "enable_return_routed_experts" not in str(error):
                    raise
                raise TreewrightError(
                    "this vLLM cannot say which experts a token took: leave routes out of policy.options, or type: "
                    "pip install --upgrade vllm"
                ) from error
            except (OSError, ValueError, RuntimeError) as error:
                raise TreewrightError(f"vLLM cannot load {model!r}: {_why(error)}; its log above says why") from error

        return cls(opened, bool({**ours, **options}["enable_sleep_mode"]))

    @property
    def dead(self) -> bool:
        return self.llm is None or bool(self.llm.errored)

    async def generate(self, ask: Ask) -> Told:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        self._bind()
        old = max(len(ask.ids) - ask.added - 1, 0)  # tokens that draws before had read
        known = {"routed_experts_prompt_start": max(old - self.block, 0)}
        params = SamplingParams(
            **(known if ask.added and hasattr(SamplingParams, "routed_experts_prompt_start") else {}),
            max_tokens=ask.max_tokens,
            temperature=ask.temperature,
            seed=ask.seed,
            logprobs=0,
            stop_token_ids=list(ask.stop_ids),
            ignore_eos=ask.grammar is None,  # we name every stop ourselves; a grammar ends with the model's own
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=StructuredOutputsParams(grammar=ask.grammar) if ask.grammar else None,
        )
        prompt = TokensPrompt(prompt_token_ids=list(ask.ids))

        async def whole() -> Any:
            last = None
            async for out in self.llm.generate(
                prompt, params, f"draw-{next(self._numbers)}", lora_request=self._adapter
            ):
                last = out
            return last

        try:
            last = await self._watched(whole())
        except (EngineDeadError, EngineGenerateError) as error:
            if self.dead:
                raise EngineDead("the vLLM engine's process died") from error
            raise PolicyFault(f"vLLM failed a draw: {error.__cause__ or error}") from error
        except ValueError as error:
            raise PolicyFault(f"vLLM refuses the draw: {error}") from error
        if last is None or last.outputs[0].finish_reason not in ("stop", "length"):
            raise PolicyFault(f"vLLM ended a draw with {last.outputs[0].finish_reason if last else 'nothing'!r}")
        done = last.outputs[0]
        ids = tuple(done.token_ids)
        logprobs = tuple(float(at[i].logprob) for at, i in zip(done.logprobs, ids, strict=True))
        cached = last.num_cached_tokens or 0
        # The cache holds whole blocks: what stood in one that was not full is computed, and routed, once more.
        again = min(max(old - cached, 0), self.block)
        return Told(ids, logprobs, done.finish_reason, cached, routes_told(last), again)

    def _bind(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            raise TreewrightError(
                "this vLLM engine belongs to another event loop; use one asyncio.run for all, or open it again"
            )
        self._loop = loop

    async def load_weights(self, folder: str) -> None:
        await self._exchange("take_folder", {"folder": folder})

    async def load_state(self, state: Mapping[str, Any]) -> None:
        from safetensors.torch import save

        size = sum(t.numel() * t.element_size() for t in state.values())
        if size > LARGEST_STATE:
            raise TreewrightError(
                f"{size >> 20} MiB of weights are too many for one message; save them to a folder (on /dev/shm, say) "
                "and call load_weights"
            )
        own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
        await self._exchange("take_weights", {"data": save(own)})

    async def _exchange(self, method: str, kwargs: dict[str, Any]) -> None:
        self._bind()
        try:
            await self._told(self.llm.collective_rpc(method, kwargs=kwargs), "take the weights")
        finally:
            if not self.dead:
                await self.llm.reset_prefix_cache()
        self._weights = (method, kwargs)

    async def _watched(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Waits for vLLM to do something; where its process dies meanwhile it may leave that pending for ever.

        Raises EngineDead then.
        """
        job = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({job}, timeout=WATCH))[0]:
                if self.dead:
                    raise EngineDead("the vLLM engine's process died")
            return job.result()
        finally:
            if not job.done():
                job.cancel()
                await asyncio.wait({job}, timeout=WATCH)  # vLLM frees what a cancelled draw holds

    async def _told(self, order: Coroutine[Any, Any, Any], what: str) -> Any:
        """Waits for an order to be carried out."""
        try:
            return await self._watched(order)
        except EngineDead:
            raise
        except Exception as error:
            if self.dead:
                raise EngineDead("the vLLM engine's process died") from error
            first = str(error).strip().partition("\n")[0]
            raise TreewrightError(f"vLLM did not {what}: {first}") from error

    async def load_adapter(self, folder: str) -> None:
        from vllm.lora.request import LoRARequest

        self._bind()
        old, number = self._adapter, next(self._numbers) + 1
        request = LoRARequest(f"adapter-{number}", number, folder)
        await self._told(self.llm.add_lora(request), f"take the adapter in {folder!r}")
        self._adapter = request
        if old is not None:
            await self._told(self.llm.remove_lora(old.lora_int_id), "drop the adapter before")

    async def sleep(self) -> bool:
        if not self.sleeps:
            return False
        await self._told(self.llm.sleep(1), "sleep")
        return True

    async def wake(self) -> None:
        if self.sleeps and await self._told(self.llm.is_sleeping(), "say whether it sleeps"):
            await self._told(self.llm.wake_up(), "wake")

    async def restart(self) -> None:
        """A new `AsyncLLM` in the place of the dead one. Weights that came as tensors are kept for this."""
        old, self.llm = self.llm, None
        if old is not None:
            await asyncio.to_thread(_end, old)
        self.llm = await asyncio.to_thread(self.opened)
        if self._weights is not None:
            await self._exchange(*self._weights)
        if self._adapter is not None:
            await self._told(self.llm.add_lora(self._adapter), "take the adapter")

    async def close(self) -> None:
        llm, self.llm = self.llm, None
        if llm is not None:
            _end(llm)


def _why(error: Exception) -> str:
    """The line of an error that says something; pydantic's first one says how many there are."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    told = lines[1:] if " validation error" in lines[0] else lines
    return (told or lines)[0].partition(" [type=")[0]


def _end(llm: Any) -> None:
    llm.shutdown()
    llm.shutdown = _nothing  # its finaliser calls it again, when half of the interpreter is gone


def _nothing(timeout: float | None = None) -> None:
    """Stands for a shutdown that has been done."""


def open_vllm(
    model: str,
    *,
    name: str | None = None,
    tokenizer: Any = None,
    window: Window = None,
    template: Template | str | None = None,
    template_options: dict[str, Any] | None = None,
    engine: Mapping[str, Any] | None = None,
    routes: bool = False,
    **options: Any,
) -> EnginePolicy:
    """The policy on a folder in `save_pretrained` layout or a model by name; `engine` are vLLM's engine arguments, such
    as `speculative_config`, by which vLLM drafts; the trees say so.

    routes  draws tell which experts each token took, so that training can replay them

    Raises TreewrightError if vLLM cannot load it, and ImportError where vLLM is not installed.
    """
    import vllm  # noqa: F401  (before anything slow)
    from transformers import AutoTokenizer, GenerationConfig

    if tokenizer is None or isinstance(tokenizer, str):
        try:
            tokenizer = AutoTokenizer.from_pretrained(tokenizer or model)
        except (OSError, ValueError) as error:
            raise TreewrightError(f"no tokenizer for {model!r}; pass tokenizer=FOLDER") from error
    try:
        ends = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:
        ends = None
    shown = template_for(tokenizer, window, template, **(template_options or {}))
    told = {"enable_return_routed_experts": True} if routes else {}
    started = VLLMEngine.start(served_folder(model), **{**told, **(engine or {})})
    made = EnginePolicy(
        started,
        shown,
        name=name or f"vllm:{model}",
        version=folder_version(model),
        stop_ids=[ends] if isinstance(ends, int) else list(ends or ()),
        masked_exact=True,
        drafts=(engine or {}).get("speculative_config"),
        **options,
    )
    made.work = work_of_folder(model)
    return made
