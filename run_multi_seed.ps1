# Train, evaluate and aggregate several seeds: .\run_multi_seed.ps1 -Config llama1b_aug -Seeds 42,123,456
param([string]$Config = "llama1b_aug", [string[]]$Seeds = @("42", "123", "456"))
$ErrorActionPreference = "Stop"
# `powershell -File` hands over "42,123,456" as one word, the prompt as three.
$List = $Seeds -split "[,\s]+"
Push-Location $PSScriptRoot
try {
    python run_multi_seed.py --config $Config --seeds @List
    $Code = $LASTEXITCODE
} finally {
    Pop-Location
}
exit $Code
