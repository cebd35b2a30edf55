# Train, evaluate and aggregate several seeds: .\run_multi_seed.ps1 -Config llama1b_aug -Seeds 42,123,456
param([Parameter(Mandatory = $true)][string]$Config, [int[]]$Seeds = @(42, 123, 456))
Set-Location $PSScriptRoot
python run_multi_seed.py --config $Config --seeds @Seeds
exit $LASTEXITCODE
