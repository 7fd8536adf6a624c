"""Models and images: load models under a budget, sample and adapt them; enlarge, understand and frame images.

It imports no service and nothing of the mesh. `card`, `chat`, `errors`, `flux_layers`, `framing`, `lora_layers`,
`pictures`, `requests`, `sizes` and `tensor_file` import no torch and may be imported anywhere. The other modules belong
in child processes, which own the device.

- `residency` lends models and keeps them under the budget, `served` knows which there are, `card` reads their cards
- `family` is the protocol of a kind of models; `content`, `cutout`, `flux`, `kontext`, `language`, `likeness`,
  `upscale`, `video` and `vision` are the families
- `adapters` puts LoRAs on a model: `tensor_file` judges their files, `lora_layers` finds their layers by the names of
  `flux_layers`
- `masks` `positions` `previews` `requests` `sizes`: parts of making a picture
- `background` `canvas` `framing` `mattes` `pictures`: images without a model
- `shots` tells what a photo shows of people, `seams` whether it was put together of several, `photos` examines one of a
  shoot
- `garment` finds a garment, `alignment` lays pictures of it over each other, `details` brings its details back
- `tiling` repaints large pictures by models of small ones, `refiner` redraws them by tiles that are checked, `faces`
  restores faces; `redraw` makes the attempts, `edited` has a service make them, `consistency` judges them, `patches`
  cuts parts out and puts them back
- `training` makes adapters of pictures with captions
- `chat` `gguf` `llama` `causal`: questions and answers, GGUF files, and the two runtimes of language models
- `clips` makes frames between keyframes and writes them; `frames` lends a picture's autoencoder to a video model
- `device` `weights` `errors`: the device, weight files, failures
"""
