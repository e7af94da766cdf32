// Tools run from source: pinned here, apart from the product's modules so that neither bends the other's versions.
module github.com/mics-im/mics/tools/lint

go 1.26.0
